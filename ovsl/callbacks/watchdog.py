"""Ending a run of several processes that hangs, and naming the process."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from ovsl.cluster import Watch
from ovsl.errors import InputError, is_lost_connection

ENDED_BY_WATCHDOG = 1
"""Exit status: that of a crash."""

DATA, FORWARD, BACKWARD, STEP, EVALUATION, SEGMENTATION, EVALUATED = range(7)
"""How far a process is with a training batch and what belongs to it."""


class Watchdog(Callback):
    """End all processes when none of them goes on, and say which is behind; say which is lost when one dies.

    Without it, the others wait for a process that hangs until their collective gives up, which takes half an hour and
    names nobody.

    Args:
        patience: Seconds without any move of any process, in training and in evaluation; below the ten minutes after
            which NCCL gives up, and above the longest single batch, compilation or embedding of words.
    """

    def __init__(self, patience: float = 540.0) -> None:
        if patience <= 0:
            raise InputError(f"watchdog.patience is {patience}: it has to be some seconds.")
        self.patience = patience
        self._watch: Watch | None = None
        self._batch = 0
        self._kill: Callable[[int], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch, where there are others."""
        if trainer.world_size == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return
        self._kill = getattr(trainer.strategy.launcher, "kill", None) if trainer.is_global_zero else None
        # A connection of its own: the main thread holds the other one while it waits.
        store = distributed.PrefixStore(f"watch-{stage}", distributed.distributed_c10d._get_default_store().clone())
        self._watch = Watch(store, trainer.global_rank, trainer.world_size, self.patience, self._end)
        self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others what ends this process, or say which of them is lost."""
        if self._watch is None:
            return
        if is_lost_connection(exception):
            if (lost := self._watch.lost()) is not None:
                print(f"ovsl: The connection to another process was lost: {lost}.", file=sys.stderr, flush=True)
        else:
            first = next(iter(str(exception).strip().splitlines()), "")
            self._watch.tell(f"ended by {type(exception).__name__}: {first[:200]}")
        self.teardown(trainer, pl_module, "")

    def _end(self, complaint: str) -> None:
        print(f"ovsl: {complaint} The same command goes on. What this process did:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        if self._kill is not None:
            # They speak up by themselves, unless they are stopped as a whole.
            time.sleep(2 * self._watch.beat if self._watch else 0)
            self._kill(signal.SIGKILL)
        # The main thread cannot be reached: it waits in a collective, or hangs.
        os._exit(ENDED_BY_WATCHDOG)

    # Where the process is --------------------------------------------------------------------------------------------

    def _mark(self, stage: int, doing: str) -> None:
        if self._watch is not None:
            self._watch.mark((self._batch, stage), doing)

    def on_train_start(self, *arguments: Any) -> None:
        """Wait for the first batch."""
        self._mark(DATA, "waiting for its first batch")

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Begin a batch."""
        self._batch += 1
        self._mark(FORWARD, f"in the forward pass of batch {self._batch}")

    def on_before_backward(self, *arguments: Any) -> None:
        """Begin the backward pass, in which gradients are exchanged."""
        self._mark(BACKWARD, f"in the backward pass of batch {self._batch}")

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        """Begin the step."""
        self._mark(STEP, f"in the optimiser's step of batch {self._batch}")

    def on_train_batch_end(self, *arguments: Any) -> None:
        """End a batch."""
        self._mark(STEP, f"at the end of batch {self._batch}, or waiting for the next one")

    def on_validation_start(self, *arguments: Any) -> None:
        """Begin an evaluation."""
        self._mark(EVALUATION, f"beginning an evaluation{self._after()}")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin a batch of it."""
        # The first may wait for the others: buffers are exchanged in it.
        self._mark(SEGMENTATION, f"in batch {batch_idx + 1} of an evaluation{self._after()}")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End a batch of it."""
        self._mark(SEGMENTATION, f"behind batch {batch_idx + 1} of an evaluation{self._after()}")

    def on_validation_epoch_end(self, *arguments: Any) -> None:
        """Gather the figures of all processes."""
        self._mark(EVALUATED, f"at the end of an evaluation{self._after()}")

    on_test_start = on_predict_start = on_validation_start  # type: ignore[assignment]
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end  # type: ignore[assignment]

    def _after(self) -> str:
        return f" after batch {self._batch}" if self._batch else ""
