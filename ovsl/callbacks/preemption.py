"""Stopping between two steps when a signal asks for it."""

from __future__ import annotations

import signal
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from ovsl.callbacks.checkpoint import RunCheckpoint, validation_follows
from ovsl.cluster import StopRequest, job_id, requeue
from ovsl.cluster.preemption import REQUEUE
from ovsl.errors import StoppedError


class Preemption(Callback):
    """Save and leave at the end of a step when SIGTERM, SIGINT, SIGUSR1 or SIGHUP came; in SLURM, requeue on SIGUSR1.

    All processes agree after each optimiser step, so that they save the same one. In a validation a single process
    leaves at once, since the checkpoint before it is on the disk and the validation will be done again; several
    processes finish it first, because their numbers of batches differ.
    """

    def __init__(self) -> None:
        self.request = StopRequest()
        self._group: Any = None
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back SIGTERM, which the trainer answers in the handler and by the status of success."""
        self.request.listen()
        self._step = trainer.global_step
        several = trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized()
        # A group on the CPU: the device is not waited for.
        self._group = distributed.new_group(backend="gloo") if several else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree on a signal, save and leave."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        number = self._agreed()
        if number and trainer.global_step != trainer.max_steps:
            # The trainer would log this step after the hook that is left here.
            trainer._logger_connector.update_train_step_metrics()
            for checkpoint in _checkpoints(trainer):
                checkpoint.save(trainer, validation_owed=validation_follows(trainer))
            self._leave(trainer, number)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Leave a validation at once, where no other process waits in it."""
        if self.request.signal and trainer.state.fn == "fit" and trainer.world_size == 1:
            self._leave(trainer, self.request.signal)

    def _agreed(self) -> int:
        own = self.request.signal or 0
        if self._group is None:
            return own
        # The largest: where one process is to stop, all are, and a request to requeue is the request of all.
        numbers = torch.tensor([own, int(own == REQUEUE)], dtype=torch.int32)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group=self._group)
        return int(REQUEUE or 0) if numbers[1] else int(numbers[0])

    def _leave(self, trainer: Trainer, number: int) -> None:
        # A job that is queued again is killed soon.
        for checkpoint in _checkpoints(trainer):
            checkpoint.finish()
        again = ""
        if number == REQUEUE and (job := job_id()) is not None:
            again = f" Job {job} is queued again."
            if trainer.is_global_zero and (complaint := requeue(job)) is not None:
                again = f" Job {job} could not be queued again: {complaint}."
        raise StoppedError(
            f"Stopped by {signal.Signals(number).name} after step {trainer.global_step}; the same command goes on."
            + again
        )


def _checkpoints(trainer: Trainer) -> list[RunCheckpoint]:
    return [each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint)]
