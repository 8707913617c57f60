"""What ``ovsl predict`` leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from ovsl.callbacks.drawing import draw_overlay
from ovsl.callbacks.pictures import as_picture
from ovsl.vocabulary import Vocabulary


class PredictionFiles(BasePredictionWriter):
    """Write, for each image, a label map, an overlay with legend, and the share of each class.

    In ``<run directory>/predictions``: ``<id>.labels.png`` (16 bit, the index of the class), ``<id>.overlay.png`` and
    ``<id>.json``; ``classes.json`` names the indices.

    Args:
        overlays: Whether to draw the overlays.
    """

    def __init__(self, overlays: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.overlays = overlays
        self.written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the names of the classes."""
        self.written = 0
        if trainer.is_global_zero:
            for dataset, vocabulary in self._vocabularies(trainer).items():
                folder = self._folder(trainer, dataset)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "classes.json").write_text(json.dumps(list(vocabulary.classes), indent=1) + "\n")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the files of a batch."""
        dataset, vocabulary = list(self._vocabularies(trainer).items())[dataloader_idx]
        folder = self._folder(trainer, dataset)
        for name, image, labels in zip(batch["id"], batch["image"], prediction, strict=True):
            picture = as_picture(name, image, labels, None)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.prediction.astype(np.uint16)).save(_with_suffix(target, ".labels.png"))
            if self.overlays:
                Image.fromarray(draw_overlay(picture, vocabulary)).save(_with_suffix(target, ".overlay.png"))
            shares = np.bincount(picture.prediction.ravel(), minlength=len(vocabulary)) / picture.prediction.size
            record = {
                "id": name,
                "size": list(picture.prediction.shape),
                "share": {c: round(float(s), 6) for c, s in zip(vocabulary.classes, shares, strict=True)},
            }
            _with_suffix(target, ".json").write_text(json.dumps(record, indent=1) + "\n")
            self.written += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the files are."""
        print(f"{self.written} images -> {Path(trainer.default_root_dir) / 'predictions'}")

    @staticmethod
    def _vocabularies(trainer: Trainer) -> dict[str, Vocabulary]:
        return trainer.datamodule.evaluation_vocabularies  # type: ignore[attr-defined]

    def _folder(self, trainer: Trainer, dataset: str) -> Path:
        folder = Path(trainer.default_root_dir) / "predictions"
        return folder if len(self._vocabularies(trainer)) == 1 else folder / dataset


def _with_suffix(path: Path, suffix: str) -> Path:
    # `Path.with_suffix` would cut an id such as "frame.0001" at its dot.
    return path.with_name(path.name + suffix)
