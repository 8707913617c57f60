"""Sheets of predictions, to TensorBoard and to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from ovsl.callbacks.debug import is_debug_run
from ovsl.data.batches import EvaluationBatch
from ovsl.inference import Segmentation
from ovsl.methods.base import SegmentationModule
from ovsl.results.drawing import Picture, Segments, draw_sheet


class PredictionPictures(Callback):
    """Draw the first images of every evaluation dataset: image, ground truth, prediction, panoptic maps, legend.

    Sheets go to TensorBoard as `val/<dataset>/pictures` and to `<run directory>/pictures`. Panoptic maps are on them
    where the method predicts masks and the data has segments.

    Args:
        count: Images on a sheet; 0 draws none.
    """

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self._pictures: dict[int, list[Picture]] = {}

    def _collect(self, outputs: Any, batch: EvaluationBatch, dataset: int) -> None:
        pictures = self._pictures.setdefault(dataset, [])
        missing = self.count - len(pictures)
        pictures += as_pictures(outputs[:missing], batch)

    def _draw(self, trainer: Trainer, module: LightningModule, prefix: str) -> None:
        assert isinstance(module, SegmentationModule)
        if not trainer.is_global_zero or trainer.sanity_checking or is_debug_run(trainer):
            self._pictures.clear()
            return
        for index, pictures in self._pictures.items():
            if not pictures:
                continue
            evaluation = module.evaluation.datasets[index]
            name, step = evaluation.task.name, module.trained_steps
            sheet = draw_sheet(pictures, evaluation.segmenter.vocabulary, f"{module.title} on {name}, step {step}")
            folder = Path(trainer.default_root_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(folder / f"{prefix}-{name}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"{prefix}/{name}/pictures", sheet, step, dataformats="HWC")
        self._pictures.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images."""
        self._collect(outputs, batch, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        self._draw(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        self._draw(trainer, pl_module, "test")


def as_pictures(found: Sequence[Segmentation], batch: EvaluationBatch) -> list[Picture]:
    """Bring what was found in the first images of a batch to arrays, see `as_picture`.

    Args:
        found: For the first `len(found)` images of the batch.
        batch: With `semantic` and segments, or without.
    """
    return [as_picture(segmentation, batch, index) for index, segmentation in enumerate(found)]


def as_picture(found: Segmentation, batch: EvaluationBatch, index: int) -> Picture:
    """Bring what was found in an image to arrays; the image to the size of its labels.

    Args:
        found: For the image `index` of the batch.
        batch: With `semantic` and segments, or without.
        index: Which image.
    """
    labels, panoptic = found.labels.cpu().numpy(), found.panoptic
    image = batch["image"][index].permute(1, 2, 0).cpu().numpy()
    height, width = labels.shape
    if image.shape[:2] != (height, width):
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    truth = batch["semantic"][index].cpu().numpy() if "semantic" in batch else None
    predicted = None if panoptic is None else _segments(panoptic.segment_ids, panoptic.classes)
    true_segments = None
    if predicted is not None and "segment_ids" in batch and "segment_classes" in batch:
        true_segments = _segments(batch["segment_ids"][index], batch["segment_classes"][index])
    return Picture(batch["id"][index], image, labels, truth, predicted, true_segments)


def _segments(ids: Tensor, classes: Tensor) -> Segments:
    return Segments(ids.cpu().numpy(), classes.cpu().numpy())
