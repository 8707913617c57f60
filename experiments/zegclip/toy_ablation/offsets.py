"""The toy ablation with an offset of seen classes that suits each run, beside the published 0.1.

``python experiments/zegclip/toy_ablation/offsets.py [runs/toy_ablation [SPLIT]]`` prints a table. For every run the
offset with the best hIoU on the validation scenes is taken, and the scores are those of the test scenes.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

import torch

from ovsl.data import ToySource
from ovsl.methods import ZegCLIP
from ovsl.metrics import OpenVocabularyIoU
from ovsl.tools.models import build_model, load_checkpoint, model_parser
from ovsl.vocabulary import Vocabulary

OFFSETS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
VALIDATION, TEST = ToySource(seed=1, length=100), ToySource(seed=2, length=200)


@torch.inference_mode()
def score(model: ZegCLIP, vocabulary: Vocabulary, scenes: ToySource) -> list[dict[str, float]]:
    """Percent of the metric's figures at each of ``OFFSETS``; every scene goes through the network once."""
    text = model.evaluation_text(vocabulary)
    seen = torch.tensor(vocabulary.seen)[:, None, None]
    metrics = [OpenVocabularyIoU(len(vocabulary), vocabulary.seen) for _ in OFFSETS]
    model.seen_offset = 0.0
    for index in range(len(scenes)):
        row = scenes.row(index)
        image, truth = torch.from_numpy(row.image).permute(2, 0, 1), torch.from_numpy(row.semantic).long()
        scores = model(image[None], text).semantic_scores(tuple(truth.shape))[0]
        for offset, metric in zip(OFFSETS, metrics, strict=True):
            metric.update((scores - offset * seen).argmax(dim=0), truth)
    return [
        {name: 100 * float(found[name]) for name in ("mIoU_seen", "mIoU_unseen", "hIoU")}
        for found in (metric.compute() for metric in metrics)
    ]


def main() -> None:
    """Print the table."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/toy_ablation")
    vocabulary = Vocabulary.load("toy", split=sys.argv[2] if len(sys.argv) > 2 else "zero_shot")
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in sorted(runs.glob("*-seed*")):
        parser = model_parser("offsets", "")
        model = build_model(parser, parser.parse_args(["-c", str(run / "config.yaml")]))
        load_checkpoint(model, run / "checkpoints" / "last.ckpt")
        model.eval()
        validation, test = score(model, vocabulary, VALIDATION), score(model, vocabulary, TEST)
        best = max(range(len(OFFSETS)), key=lambda index: validation[index]["hIoU"])
        none, published = test[0], test[OFFSETS.index(0.1)]
        figures = {f"{name}, best": value for name, value in test[best].items()}
        figures |= {"offset": OFFSETS[best], "hIoU, 0.1": published["hIoU"], "hIoU, none": none["hIoU"]}
        rows[run.name.rsplit("-", 1)[0]].append(figures)
    columns = ("hIoU, none", "hIoU, 0.1", "offset", "mIoU_seen, best", "mIoU_unseen, best", "hIoU, best")
    print("| row |", " | ".join(columns), "|")
    print("|---|" + "---:|" * len(columns))
    for name, seeds in rows.items():
        cells = []
        for column in columns:
            values = [figures[column] for figures in seeds]
            digits = 2 if column == "offset" else 1
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        print(f"| {name} ({len(seeds)} seeds) |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
