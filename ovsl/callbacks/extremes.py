"""The best and the worst images of a test."""

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
from ovsl.metrics.segmentation import count_pixels
from ovsl.results.drawing import Picture, draw_sheet, reduced

LONGEST_SIDE = 512
"""Pixels of a kept picture."""

Scored = tuple[float, int, Picture]
"""Score, a number of its own so that any two can be put in order, picture."""


@dataclass
class _Kept:
    """What is kept of a dataset: heaps, scores of `worst` negative, so that its least one is the first to go, too."""

    best: list[Scored] = field(default_factory=list)
    worst: list[Scored] = field(default_factory=list)


class PredictionExtremes(Callback):
    """Draw the images of every test set that went best and worst.

    An image scores the mean IoU of the classes of its ground truth. Sheets go to
    `<run directory>/pictures/test-<dataset>-best.png` and `-worst.png`; `ovsl report --html` shows them. Episodes have
    none.

    Args:
        count: Images on a sheet; 0 draws none.
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
        """Keep those images of a batch that are among the extremes so far."""
        assert isinstance(pl_module, SegmentationModule)
        task = pl_module.evaluation.datasets[dataloader_idx].task
        vocabulary = task.vocabulary
        if not self.count or task.episodes:
            return
        kept = self._kept.setdefault(dataloader_idx, _Kept())
        for index, found in enumerate(outputs):
            target = batch["semantic"][index]
            score = float(image_score(*count_pixels(found.labels, target, len(vocabulary), vocabulary.ignore_index)))
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
            own, parts = parts[0], [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, own)
        if not trainer.is_global_zero or is_debug_run(trainer):
            return
        for dataset in sorted({dataset for part in parts for dataset in part}):
            self._write(trainer, pl_module, dataset, [part[dataset] for part in parts if dataset in part])

    def _write(self, trainer: Trainer, module: SegmentationModule, dataset: int, kept: list[_Kept]) -> None:
        evaluation = module.evaluation.datasets[dataset]
        name, root = evaluation.task.name, Path(trainer.default_root_dir)
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


def image_score(intersection: Tensor, prediction_area: Tensor, target_area: Tensor) -> Tensor:
    """Mean IoU in 0..1 of the classes of the ground truth, `()`; NaN where there is none.

    Args:
        intersection: See `ovsl.metrics.segmentation.count_pixels`, `(C,)`.
        prediction_area: Likewise.
        target_area: Likewise.
    """
    present = target_area > 0
    return (intersection[present].double() / (target_area + prediction_area - intersection)[present]).mean()
