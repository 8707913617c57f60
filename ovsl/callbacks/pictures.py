"""Sheets of predictions, to TensorBoard and to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from ovsl.callbacks.debug import is_debug_run
from ovsl.callbacks.drawing import Picture, draw_sheet


class PredictionPictures(Callback):
    """Draw the first images of every evaluation dataset: image, ground truth, prediction, legend.

    Sheets go to TensorBoard as ``val/<dataset>/pictures`` and to ``<run directory>/pictures``.

    Args:
        count: Images on a sheet; 0 draws none.
    """

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self._pictures: dict[int, list[Picture]] = {}

    def _collect(self, outputs: Any, batch: dict[str, Any], dataset: int) -> None:
        pictures = self._pictures.setdefault(dataset, [])
        for name, image, truth, labels in zip(batch["id"], batch["image"], batch["semantic"], outputs, strict=True):
            if len(pictures) == self.count:
                return
            pictures.append(as_picture(name, image, labels, truth))

    def _draw(self, trainer: Trainer, module: Any, prefix: str) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or is_debug_run(trainer):
            self._pictures.clear()
            return
        names = list(trainer.datamodule.evaluation_vocabularies)  # type: ignore[attr-defined]
        for index, pictures in self._pictures.items():
            if not pictures:
                continue
            title = f"{type(module).__name__} on {names[index]}, step {module.trained_steps}"
            sheet = draw_sheet(pictures, module.evaluation_vocabularies[index], title)
            folder = Path(trainer.default_root_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(folder / f"{prefix}-{names[index]}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(
                        f"{prefix}/{names[index]}/pictures", sheet, module.trained_steps, dataformats="HWC"
                    )
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

    def on_test_batch_end(
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

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        self._draw(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        self._draw(trainer, pl_module, "test")


def as_picture(name: str, image: Tensor, labels: Tensor, truth: Tensor | None) -> Picture:
    """Bring tensors to arrays; the image to the size of its labels, for drawing only."""
    array = image.permute(1, 2, 0).cpu().numpy()
    height, width = labels.shape
    if array.shape[:2] != (height, width):
        array = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))
    return Picture(name, array, labels.cpu().numpy(), None if truth is None else truth.cpu().numpy())
