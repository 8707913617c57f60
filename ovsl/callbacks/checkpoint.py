"""Checkpoints of a run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import CheckpointIO

from ovsl.callbacks.debug import is_debug_run
from ovsl.errors import InputError
from ovsl.runs.background import BackgroundWriter, copy_to_host
from ovsl.runs.directory import RunDirectory
from ovsl.runs.files import link, write_text
from ovsl.runs.record import VALIDATION_OWED, load_checkpoint_file, save_checkpoint_file

_log = logging.getLogger(__name__)


class RunCheckpoint(Checkpoint):
    """Keep the newest checkpoints of a run, and the best by a figure of its validations.

    In `<run directory>/checkpoints`: `step-<N>.ckpt`, each whole on the disk before an older one goes; `last.ckpt` and
    `best.ckpt` are links. Besides every so many steps, a checkpoint is written before each validation, which says that
    its validation is still to be done, and again after it: whatever kills a run in a validation, the validation is
    done again as a whole, and a figure is always that of the weights in the file it is kept with.

    Training waits for the copy to host memory and not for the disk. One file at a time is written, and it is on the
    disk before the next is begun, before a validation is ranked, and before the run ends or is stopped.

    Args:
        every_n_train_steps: Optimiser steps between two checkpoints.
        keep_last: Newest checkpoints to keep; an older one takes over when the newest is damaged.
        monitor: Logged figure of the validation that ranks checkpoints, such as `val/toy/hIoU`; None ranks none.
        mode: Whether the best figure is the largest (`max`) or the smallest (`min`).
        save_top_k: Best checkpoints to keep besides, where `monitor` is given; -1 keeps every checkpoint.
    """

    def __init__(
        self,
        every_n_train_steps: int = 500,
        keep_last: int = 3,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        save_top_k: int = 1,
    ) -> None:
        if every_n_train_steps < 1 or keep_last < 1 or save_top_k < -1:
            raise InputError(
                "checkpoint.every_n_train_steps and keep_last have to be 1 or more, save_top_k -1 or more."
            )
        self.every_n_train_steps = every_n_train_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self._saved_step = -1
        self._validation_owed = False
        self._step_before_batch = -1
        self._files = WholeCheckpoints()

    # When to save --------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let files be written whole or not at all, and read only when they are."""
        trainer.strategy.checkpoint_io = self._files

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the validation that the checkpoint still owes, before training goes on."""
        self._files.in_background = True
        self._saved_step, self._step_before_batch = trainer.global_step, -1
        if self._validation_owed and trainer.enable_validation:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notice whether the batch will end with a step."""
        self._step_before_batch = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save by the interval, and before a validation."""
        self._files.writer.check()
        owed = validation_follows(trainer)
        if owed or trainer.global_step % self.every_n_train_steps == 0:
            self.save(trainer, validation_owed=owed)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation that no interval announced, such as that of early stopping."""
        if self._in_fit(trainer) and not (self._saved_step == trainer.global_step and self._validation_owed):
            self.save(trainer, validation_owed=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank the weights that were validated, and save them as validated."""
        if trainer.sanity_checking or is_debug_run(trainer):
            return
        self.finish()
        if self.monitor is not None:
            self._rank(trainer, getattr(pl_module, "trained_steps", trainer.global_step))
        if self._in_fit(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, which need not be a multiple of the interval."""
        if self._saved_step != trainer.global_step:
            self.save(trainer)
        self.finish()
        self._files.in_background = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a write end whatever ends the run, and say why where it cannot."""
        try:
            self.finish()
        except Exception as error:
            _log.warning("The newest checkpoint could not be written: %s", error)

    def _in_fit(self, trainer: Trainer) -> bool:
        return trainer.state.fn == "fit" and not trainer.sanity_checking

    # Saving ----------------------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer, validation_owed: bool = False) -> None:
        """Save the state between two steps; every process has to call this.

        Args:
            trainer: In `fit`.
            validation_owed: Whether a validation of this step is still to be done.
        """
        # Within accumulated gradients nothing can be saved: they are not in a checkpoint.
        if is_debug_run(trainer) or trainer.global_step == self._step_before_batch:
            return
        self._validation_owed = validation_owed
        directory = RunDirectory(Path(trainer.default_root_dir))
        step = trainer.global_step
        trainer.save_checkpoint(directory.checkpoint(step))
        self._saved_step = step
        if trainer.is_global_zero:
            self._files.writer.then(lambda: self._keep(directory, step))

    def finish(self) -> None:
        """Wait until the newest checkpoint is on the disk.

        Raises:
            OSError: It could not be written.
        """
        self._files.writer.wait()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say whether the validation of this step is still to be done."""
        checkpoint[VALIDATION_OWED] = self._validation_owed

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what is still to be done."""
        self._validation_owed = bool(checkpoint.get(VALIDATION_OWED))

    # Ranking ---------------------------------------------------------------------------------------------------------

    def _rank(self, trainer: Trainer, step: int) -> None:
        assert self.monitor is not None
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise InputError(f"checkpoint.monitor {self.monitor!r} is not measured: take one of {known or 'none'}.")
        directory = RunDirectory(Path(trainer.default_root_dir))
        path = directory.checkpoint(step)
        if not trainer.is_global_zero or math.isnan(float(value)) or not path.is_file():
            return
        scores = {**self._scores(directory), step: float(value)}
        content = {"monitor": self.monitor, "mode": self.mode, "scores": scores}
        write_text(self._scores_file(directory), json.dumps(content, indent=1) + "\n")
        link(directory.best_checkpoint, directory.checkpoint(self._best(scores)[0]))

    def _best(self, scores: dict[int, float]) -> list[int]:
        sign = -1 if self.mode == "max" else 1
        return sorted(scores, key=lambda step: (sign * scores[step], step))

    def _scores(self, directory: RunDirectory) -> dict[int, float]:
        """Read what the checkpoints on the disk were measured at."""
        try:
            content = json.loads(self._scores_file(directory).read_text())
            if (content["monitor"], content["mode"]) != (self.monitor, self.mode):
                return {}
            scores = {int(step): float(value) for step, value in content["scores"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {step: value for step, value in scores.items() if directory.checkpoint(step).is_file()}

    def _scores_file(self, directory: RunDirectory) -> Path:
        return directory.best_checkpoint.with_name("scores.json")

    def _keep(self, directory: RunDirectory, step: int) -> None:
        """Let the links stand for a checkpoint that is on the disk, and remove older ones."""
        link(directory.last_checkpoint, directory.checkpoint(step))
        # Newer ones than the present step are damaged or of another branch: neither takes the place of a good one.
        if self.save_top_k == -1:
            return
        steps = [number for number in directory.saved_steps() if number <= step]
        best = self._best(self._scores(directory)) if self.monitor is not None else []
        kept = {*steps[: self.keep_last], *best[: self.save_top_k]}
        for number in steps:
            if number not in kept:
                directory.checkpoint(number).unlink(missing_ok=True)


class WholeCheckpoints(CheckpointIO):
    """Checkpoint files that are on the disk whole or not at all, and are read only when they are undamaged.

    Attributes:
        in_background: Whether writing goes on beside what follows.
    """

    def __init__(self) -> None:
        self.writer = BackgroundWriter()
        self.in_background = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file; see `ovsl.runs.record.save_checkpoint_file`."""
        self.writer.wait()
        if self.in_background:
            copied = copy_to_host(checkpoint)
            self.writer.submit(lambda: save_checkpoint_file(copied, Path(path)))
        else:
            save_checkpoint_file(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, always without running anything of it; see `ovsl.runs.record.load_checkpoint_file`."""
        self.writer.wait()
        return load_checkpoint_file(Path(path), mapped=False)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file."""
        self.writer.wait()
        Path(path).unlink(missing_ok=True)


def validation_follows(trainer: Trainer) -> bool:
    """Whether the schedule validates right after the present training batch."""
    if not trainer.enable_validation:
        return False
    every_epochs, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if every_epochs is not None and (trainer.current_epoch + 1) % every_epochs:
        return False
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if interval is None or interval == float("inf"):
        return progress.is_last_batch
    batches = progress.total.ready if every_epochs is None else progress.current.ready
    return batches % int(interval) == 0
