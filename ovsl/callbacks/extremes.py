"""The best and the worst images of a test, and which class was taken for which."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from ovsl.callbacks.debug import is_debug_run
from ovsl.callbacks.pictures import as_picture
from ovsl.data.batches import EvaluationBatch
from ovsl.methods.base import SegmentationModule
from ovsl.metrics.segmentation import confusion_table
from ovsl.results.confusion import Confusion, confusion_file
from ovsl.results.drawing import Picture, draw_sheet, reduced

MOST_CLASSES, LONGEST_SIDE = 1024, 512
"""Classes of the largest table of confusions, 8 MB; pixels of a kept picture."""

Scored = tuple[float, int, Picture]
"""Score, a number of its own so that any two can be put in order, picture."""


@dataclass
class _Kept:
    """What is kept of a dataset: heaps, scores of `worst` negative, so that its least one is the first to go, too."""

    table: Tensor
    best: list[Scored] = field(default_factory=list)
    worst: list[Scored] = field(default_factory=list)


class PredictionExtremes(Callback):
    """Draw the images of every test set that went best and worst, and count which class was taken for which.

    An image scores the mean IoU of the classes of its ground truth. Sheets go to
    `<run directory>/pictures/test-<dataset>-best.png` and `-worst.png`, the confusion to
    `<run directory>/results/test-<dataset>.confusion.npz`; `ovsl report --html` shows them. Vocabularies of more than
    1024 classes, and episodes, have neither.

    Args:
        count: Images on a sheet; 0 draws and counts nothing.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count
        self._kept: dict[int, _Kept] = {}
        self._numbers = itertools.count()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, and keep those of its images that are among the extremes so far."""
        assert isinstance(pl_module, SegmentationModule)
        task = pl_module.evaluation.datasets[dataloader_idx].task
        vocabulary = task.vocabulary
        if not self.count or task.episodes or len(vocabulary) > MOST_CLASSES:
            return
        for index, found in enumerate(outputs):
            table = confusion_table(found.labels, batch["semantic"][index], len(vocabulary), vocabulary.ignore_index)
            kept = self._kept.setdefault(dataloader_idx, _Kept(torch.zeros_like(table)))
            kept.table += table
            score = float(image_score(table))
            if np.isnan(score):  # nothing of the image is evaluated
                continue
            picture: Picture | None = None
            for extremes, rank in ((kept.best, score), (kept.worst, -score)):
                if len(extremes) < self.count or rank > extremes[0][0]:
                    picture = picture or self._picture(found, batch, index, score)
                    heapq.heappush(extremes, (rank, next(self._numbers), picture))
                    if len(extremes) > self.count:
                        heapq.heappop(extremes)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and write what all processes kept."""
        assert isinstance(pl_module, SegmentationModule)
        parts: list[dict[int, _Kept]] = [self._kept]
        self._kept = {}
        if trainer.world_size > 1:
            on_host = {index: replace(kept, table=kept.table.cpu()) for index, kept in parts[0].items()}
            parts = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, on_host)
        if not trainer.is_global_zero or is_debug_run(trainer):
            return
        for dataset in sorted({dataset for part in parts for dataset in part}):
            self._write(trainer, pl_module, dataset, [part[dataset] for part in parts if dataset in part])

    def _write(self, trainer: Trainer, module: SegmentationModule, dataset: int, kept: list[_Kept]) -> None:
        evaluation = module.evaluation.datasets[dataset]
        name, root = evaluation.task.name, Path(trainer.default_root_dir)
        table = torch.stack([part.table for part in kept]).sum(0)
        Confusion.of(table.cpu().numpy()).write(confusion_file(root / "results" / f"test-{name}.json"))
        (root / "pictures").mkdir(parents=True, exist_ok=True)
        for which in ("best", "worst"):
            entries: list[Scored] = [entry for part in kept for entry in getattr(part, which)]
            if scored := heapq.nlargest(self.count, entries, key=lambda entry: entry[0]):
                title = f"{module.title} on {name}: the {which} of all images"
                sheet = draw_sheet([picture for *_, picture in scored], evaluation.segmenter.vocabulary, title)
                Image.fromarray(sheet).save(root / "pictures" / f"test-{name}-{which}.png")

    def _picture(self, found: Any, batch: EvaluationBatch, index: int, score: float) -> Picture:
        picture = as_picture(found, batch, index)
        return replace(reduced(picture, LONGEST_SIDE), note=f"{picture.id[-60:]}: mIoU {100 * score:.1f} %")


def image_score(table: Tensor) -> Tensor:
    """Mean IoU in 0..1 of the classes of the ground truth, `()`; NaN where there is none.

    Args:
        table: See `ovsl.metrics.segmentation.confusion_table`.
    """
    true_pixels, found_pixels, common = table.sum(1), table.sum(0), table.diagonal()
    present = true_pixels > 0
    return (common[present].double() / (true_pixels + found_pixels - common)[present]).mean()
