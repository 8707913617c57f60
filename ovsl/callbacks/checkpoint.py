"""Checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ovsl.callbacks.debug import is_debug_run


class RunCheckpoint(ModelCheckpoint):
    """Keep ``<run directory>/checkpoints/last.ckpt`` current, and write it once more when training ends.

    Args:
        every_n_train_steps: Optimiser steps between two checkpoints.
        save_top_k: Further checkpoints to keep by ``monitor``; see Lightning's ``ModelCheckpoint``.
        monitor: Logged value that decides which are kept, such as ``val/toy/hIoU``.
        mode: ``max`` or ``min``.
    """

    def __init__(
        self, every_n_train_steps: int = 500, save_top_k: int = 0, monitor: str | None = None, mode: str = "max"
    ) -> None:
        super().__init__(
            every_n_train_steps=every_n_train_steps,
            save_top_k=save_top_k,
            monitor=monitor,
            mode=mode,
            save_last=True,
            filename="step-{step}",
            auto_insert_metric_name=False,
            # `last.ckpt` belongs to this run directory alone: a resumed run goes on with the same file.
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run directory."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, which need not be a multiple of the interval; but not in a debug run."""
        if self._last_global_step_saved != trainer.global_step and not is_debug_run(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
