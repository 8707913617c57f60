"""How far a verb is, as lines of a log: a bar would fill it with control characters, or say nothing until the end."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ovsl.progress import Lines


class ProgressLines(Callback):
    """Say on the error stream now and then how far training, validation, test and prediction are.

    The verbs take it in place of Lightning's bar where the error stream is no terminal, unless
    `trainer.enable_progress_bar` is false.
    """

    def __init__(self) -> None:
        self._training: Lines | None = None
        self._evaluation: Lines | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._training = self._lines(trainer, "Training, steps")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Say the step."""
        if self._training is not None:
            of = trainer.estimated_stepping_batches
            figures = (f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items())
            self._training.at(trainer.global_step, int(of) if math.isfinite(of) else None, lambda: ", ".join(figures))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it is over."""
        if self._training is not None:
            self._training.end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._evaluation = self._lines(trainer, "Validating, batches")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._evaluation = self._lines(trainer, "Testing, batches")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._evaluation = self._lines(trainer, "Predicting, batches")

    def on_validation_batch_end(self, trainer: Trainer, *batch: Any) -> None:
        """Say the batch."""
        self._say(trainer.num_val_batches, *batch[3:])

    def on_test_batch_end(self, trainer: Trainer, *batch: Any) -> None:
        """Say the batch."""
        self._say(trainer.num_test_batches, *batch[3:])

    def on_predict_batch_end(self, trainer: Trainer, *batch: Any) -> None:
        """Say the batch."""
        self._say(trainer.num_predict_batches, *batch[3:])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it is over."""
        if self._evaluation is not None:
            self._evaluation.end()

    on_test_end = on_predict_end = on_validation_end

    def _lines(self, trainer: Trainer, what: str) -> Lines | None:
        return Lines(what) if trainer.is_global_zero and not trainer.sanity_checking else None

    def _say(self, counts: list[int | float], batch: int, loader: int = 0) -> None:
        if self._evaluation is not None:
            done, of = sum(counts[:loader]) + batch + 1, sum(counts)
            self._evaluation.at(int(done), int(of) if math.isfinite(of) else None)
