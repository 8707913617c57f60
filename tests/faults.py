"""Callbacks that make a run fail in the ways that runs fail."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

BATCH_BEGUN: dict[int, Callable[[], object]] = {}
"""What `CallAtBatch` calls when a batch begins, by its number from 1."""


class CallAtBatch(Callback):
    """Call what a test asks for."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        BATCH_BEGUN.get(trainer.global_step + 1, int)()


class SlowSteps(Callback):
    """Leave time to kill a run between two of its steps."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(1.5)


class UnevenProcesses(Callback):
    """Make the second process slower than the first."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        time.sleep(0.3 * trainer.global_rank)


class HangAtStep(Callback):
    """Let one process wait for ever in a batch or in a validation, or stop it as a whole.

    Args:
        step: Steps that were done before.
        rank: Of the process.
        where: `batch`, `validation`, or `stopped` for a process that cannot even speak.
    """

    def __init__(self, step: int, rank: int = 1, where: str = "batch") -> None:
        self.step = step
        self.rank = rank
        self.where = where

    def _hang(self, trainer: Trainer, where: str) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank and where == self.where:
            time.sleep(3600)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._hang(trainer, "batch")
        if self.where == "stopped" and trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGSTOP)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._hang(trainer, "validation")


class DieAtStep(Callback):
    """Kill one process, or fail in it.

    Args:
        step: Steps that were done before.
        rank: Of the process.
        error: Whether it ends by an exception of its own.
    """

    def __init__(self, step: int, rank: int = 1, error: bool = False) -> None:
        self.step = step
        self.rank = rank
        self.error = error

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            if self.error:
                raise ValueError("this process fails")
            os.kill(os.getpid(), signal.SIGKILL)


class KillWorker(Callback):
    """Kill one of the processes that prepare data, at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            worker = next(each for each in multiprocessing.active_children() if "Worker" in each.name or each.daemon)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)


class FailInValidation(Callback):
    """Fail in the middle of the validation of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("failed in a validation")


class SignalAtStep(Callback):
    """Send this process a signal at the end of a step, or in the validation after it."""

    def __init__(self, step: int, name: str = "SIGTERM", in_validation: bool = False, rank: int = 0) -> None:
        self.step = step
        self.rank = rank
        self.name = name
        self.in_validation = in_validation

    def _send(self, trainer: Trainer) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), getattr(signal, self.name))

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not self.in_validation:
            self._send(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.in_validation:
            self._send(trainer)


class FullDisk(Callback):
    """Let no file of this process grow over a size from a step on, which answers writes as a full disk does."""

    def __init__(self, step: int, size: int = 20_000) -> None:
        self.step = step
        self.size = size

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


class NoisyGradient(Callback):
    """Add random noise to the gradients, as dropout and random points do."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad += torch.randn_like(parameter.grad)

    def on_validation_batch_end(self, *args: Any) -> None:
        torch.rand(3)


class NaNGradient(Callback):
    """Put one NaN into a gradient of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            gradient = next(p.grad for p in pl_module.parameters() if p.grad is not None)
            gradient.view(-1)[0] = float("nan")


class NaNWeight(Callback):
    """Put one NaN into the weights before a validation."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weight = next(p for p in pl_module.parameters() if p.requires_grad)
        weight.data.view(-1)[0] = float("nan")
