"""What the toy ablation's rows know, and what they lose to the offset of seen classes.

``python experiments/zegclip/toy_ablation/analysis.py [runs/toy_ablation]`` prints two tables of the test scenes, mean
and standard deviation over the seeds. The first has the open-vocabulary scores without an offset, with the published
0.1, and with that which has the best hIoU on the validation scenes. The second has pixel accuracies: of unseen (seen)
objects when all classes compete, and when only the unseen (seen) ones do.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ovsl.data import ToySource
from ovsl.methods import ZegCLIP
from ovsl.metrics import OpenVocabularyIoU
from ovsl.tools.models import model_parser, trained_model
from ovsl.vocabulary import Vocabulary

OFFSETS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
VALIDATION, TEST = ToySource(seed=1, length=100), ToySource(seed=2, length=200)
SCORES = ("hIoU, no offset", "hIoU, 0.1", "best offset", "mIoU seen, best", "mIoU unseen, best", "hIoU, best")
ACCURACIES = ("unseen of all", "unseen of unseen", "seen of all", "seen of seen")


class Scores:
    """Scores of one model on some scenes, the model's own offset left out."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.seen = torch.tensor(vocabulary.seen)
        self.things = torch.tensor(vocabulary.things)
        self.metrics = [OpenVocabularyIoU(len(vocabulary), vocabulary.seen) for _ in OFFSETS]
        self.right: dict[str, int] = defaultdict(int)
        self.pixels: dict[str, int] = defaultdict(int)

    def update(self, scores: Tensor, truth: Tensor) -> None:
        """Add a scene: scores ``(C, H, W)``, labels int64 ``(H, W)``."""
        for offset, metric in zip(OFFSETS, self.metrics, strict=True):
            metric.update((scores - offset * self.seen[:, None, None]).argmax(dim=0), truth)
        overall = scores.argmax(dim=0)
        for name, group in (("unseen", ~self.seen), ("seen", self.seen)):
            # Objects only: the four materials are seen, cover most of a scene and are right almost everywhere.
            chosen = (group & self.things)[truth]
            among = scores.masked_fill(~group[:, None, None], -torch.inf).argmax(dim=0)
            for column, found in ((f"{name} of all", overall), (f"{name} of {name}", among)):
                self.right[column] += int((found == truth)[chosen].sum())
                self.pixels[column] += int(chosen.sum())

    def open_vocabulary(self) -> list[dict[str, float]]:
        """Percent of mIoU of seen and unseen classes and of hIoU, at each of ``OFFSETS``."""
        return [
            {name: 100 * float(found[name]) for name in ("mIoU_seen", "mIoU_unseen", "hIoU")}
            for found in (metric.compute() for metric in self.metrics)
        ]

    def accuracies(self) -> dict[str, float]:
        """Pixel accuracies in percent, see the head of this file."""
        return {column: 100 * self.right[column] / self.pixels[column] for column in self.right}


@torch.inference_mode()
def evaluate(model: ZegCLIP, vocabulary: Vocabulary, scenes: ToySource) -> Scores:
    """Every scene goes through the network once, whatever the number of offsets."""
    model.seen_offset = 0.0
    segmenter, found = model.segmenter(vocabulary), Scores(vocabulary)
    for index in range(len(scenes)):
        row = scenes.row(index)
        image, truth = torch.from_numpy(row.image).permute(2, 0, 1), torch.from_numpy(row.semantic).long()
        found.update(segmenter.scores(image[None])[0], truth)
    return found


def analyse(run: Path) -> dict[str, float]:
    """Figures of one run, under the names of ``SCORES`` and ``ACCURACIES``."""
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    dataset = settings["data"]["init_args"]["evaluation"]["toy"]
    vocabulary = Vocabulary.load("toy", split=dataset["split"])
    parser = model_parser("analysis", "")
    model = trained_model(parser, parser.parse_args(["-c", str(run / "config.yaml"), "--run_dir", str(run)]))
    assert isinstance(model, ZegCLIP)
    model.eval()
    validation = evaluate(model, vocabulary, VALIDATION).open_vocabulary()
    test = evaluate(model, vocabulary, TEST)
    scores = test.open_vocabulary()
    best = max(range(len(OFFSETS)), key=lambda index: validation[index]["hIoU"])
    chosen = scores[best]
    offsets = (scores[0]["hIoU"], scores[OFFSETS.index(0.1)]["hIoU"], OFFSETS[best])
    figures = (*offsets, chosen["mIoU_seen"], chosen["mIoU_unseen"], chosen["hIoU"])
    return dict(zip(SCORES, figures, strict=True)) | test.accuracies()


def print_table(rows: dict[str, list[dict[str, float]]], columns: tuple[str, ...]) -> None:
    """Print mean and standard deviation over the seeds as a Markdown table."""
    print("| row |", " | ".join(columns), "|")
    print("|---|" + "---:|" * len(columns))
    for name, seeds in rows.items():
        cells = []
        for column in columns:
            values = [figures[column] for figures in seeds]
            digits = 2 if column == "best offset" else 1
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        print(f"| {name} |", " | ".join(cells), "|")


def main() -> None:
    """Print the tables."""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in sorted(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/toy_ablation").glob("*-seed*")):
        rows[run.name.rsplit("-", 1)[0]].append(analyse(run))
    print("Percent. The best offset is that with the best hIoU on the validation scenes.\n")
    print_table(rows, SCORES)
    print("\nPixel accuracy of objects, no offset: all classes compete, or only the unseen (seen) ones.\n")
    print_table(rows, ACCURACIES)


if __name__ == "__main__":
    main()
