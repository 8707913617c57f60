"""Evaluating an exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule
from ovsl.runs.record import saved_state
from ovsl.runs.sharded import spread_like, whole_on_host

TRAINED = "trained_state"
"""Entry of a checkpoint with the weights that training goes on from, where `state_dict` has their average."""


class WeightAverage(Callback):
    """Keep an exponential moving average of what trains: it is what is validated, and what checkpoints give to `test`.

    After each optimiser step `average = decay * average + (1 - decay) * weights`; so for the statistics of batch norm,
    while integers are those of training. A resumed run goes on from both.

    Args:
        decay: Between 0 and 1; an average over about `1 / (1 - decay)` steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise InputError(f"The decay of a weight average is {decay}: it has to lie between 0 and 1.")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] = {}
        self._step = 0
        self._exchanged = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In training, give the module its own weights back in place of their average."""
        if trainer.state.fn == "fit" and TRAINED in checkpoint:
            self._loaded = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint[TRAINED], strict=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the average of the checkpoint, or begin with the weights that there are."""
        self._step, self._exchanged = trainer.global_step, False
        self._average = {
            name: spread_like(self._loaded.get(name, tensor), tensor).to(tensor.device, copy=True)
            for name, tensor in _weights(pl_module).items()
        }
        self._loaded = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights of the step."""
        self._update(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._update(trainer, pl_module)
        self._exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on with the weights themselves."""
        self._exchange(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both."""
        if not self._average:
            return
        self._update(trainer, pl_module)
        kept = whole_on_host(self._average)
        state = checkpoint["state_dict"]
        # Within a validation the module holds the average, and the average the weights.
        average, trained = (state, {**state, **kept}) if self._exchanged else ({**state, **kept}, state)
        if trainer.is_global_zero:
            assert isinstance(pl_module, SegmentationModule)
            checkpoint["state_dict"], checkpoint[TRAINED] = average, saved_state(pl_module, trained)

    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        # Whoever saves first in a step finds it taken in.
        if trainer.global_step == self._step or not self._average or self._exchanged:
            return
        self._step = trainer.global_step
        with torch.no_grad():
            for name, tensor in _weights(module).items():
                self._average[name].lerp_(tensor, 1 - self.decay)

    def _exchange(self, module: LightningModule) -> None:
        if not self._average:
            return
        self._exchanged = not self._exchanged
        with torch.no_grad():
            for name, tensor in _weights(module).items():
                before = tensor.clone()
                tensor.copy_(self._average[name])
                self._average[name] = before


def _weights(module: LightningModule) -> dict[str, Tensor]:
    """Take what is averaged: all that checkpoints keep, but for integers."""
    assert isinstance(module, SegmentationModule)
    state = saved_state(module, module.state_dict())
    return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}
