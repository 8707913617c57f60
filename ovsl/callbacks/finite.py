"""Stopping at the first NaN, while the last checkpoint is good."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ovsl.data.batches import TrainingBatch
from ovsl.errors import NotFiniteError
from ovsl.methods.base import SegmentationModule
from ovsl.runs.record import check_finite, saved_state
from ovsl.runs.sharded import whole

_NAMED = 8


def _interval(trainer: Trainer) -> int:
    # The trainer's parts give it this attribute, which its class does not declare.
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


class FiniteValues(Callback):
    """Stop when a loss or a gradient is not finite, and name the images; never save weights that are not.

    On the CPU the step is not taken. On a device the answers are collected there and read every
    `trainer.log_every_n_steps` steps and before each checkpoint, so that no step waits for them. With `16-mixed`
    precision, where too large gradients are part of the scheme and skipped, only the loss is looked at.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._answers: list[tuple[int, list[str], Tensor]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Remember the images since the last optimiser step."""
        self._ids += batch["id"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients, which are those of all processes."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients and trainer.precision != "16-mixed":
            self._ask(trainer, whole(torch.nn.utils.get_total_norm(gradients)))
        self._ids = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Look at the loss."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._ids = self._ids or list(batch["id"])
            self._ask(trainer, loss)
            if trainer.accumulate_grad_batches == 1:
                self._ids = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite."""
        self._read()
        if isinstance(pl_module, SegmentationModule):
            check_finite(saved_state(pl_module, checkpoint["state_dict"]))

    def _ask(self, trainer: Trainer, value: Tensor) -> None:
        self._answers.append((trainer.global_step, list(self._ids), value.detach().isfinite().all()))
        if value.device.type == "cpu" or len(self._answers) >= 2 * _interval(trainer):
            self._read()

    def _read(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        for (step, ids, _), finite in zip(answers, torch.stack([a for *_, a in answers]).tolist(), strict=True):
            if not finite:
                named = ", ".join(ids[:_NAMED]) + (" ..." if len(ids) > _NAMED else "")
                raise NotFiniteError(
                    f"The loss or its gradient is not finite after step {step}, in the batch of {named}: the last "
                    "checkpoint is good; look at these images, or lower the learning rate."
                )
