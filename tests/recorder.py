"""A callback that keeps the label maps of a test beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer


class LabelRecorder(Callback):
    """Write `labels/<id>.npy` in the run directory."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        folder = Path(trainer.default_root_dir) / "labels"
        folder.mkdir(exist_ok=True)
        for name, found in zip(batch["id"], outputs, strict=True):
            np.save(folder / f"{name.replace('/', '_')}.npy", found.labels.cpu().numpy())
