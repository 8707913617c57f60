"""One training in its run directory: as the only owner, on the same data, stopped or ended with a word."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.utilities import rank_zero_only

from ovsl.callbacks import Preemption
from ovsl.data import SegmentationDataModule
from ovsl.runs.directory import RunDirectory, Start
from ovsl.runs.files import remove_orphans
from ovsl.runs.owner import RunLock


@rank_zero_only
def say(message: str | None) -> None:
    """Print a line, once for all processes."""
    if message:
        print(message, flush=True)


def train(trainer: Trainer, config: dict[str, Any], start: Start, arguments: Mapping[str, Any]) -> None:
    """Do what is left to do of a training.

    Args:
        trainer: Built for the run.
        config: The whole configuration, plain types.
        start: What `plan` says of the run directory.
        arguments: Of `Trainer.fit`: `model`, `datamodule`, `ckpt_path`.

    Raises:
        InputError: Another process trains here, or the data is not what the run began with.
    """
    if start.complete:
        return
    if config["trainer"]["fast_dev_run"]:
        trainer.fit(**arguments)
        return
    data: SegmentationDataModule = arguments["datamodule"]
    directory, source = RunDirectory(Path(config["run_dir"])), data.train
    rank_zero_only(directory.create)()
    with RunLock(directory.path) if trainer.is_global_zero else nullcontext():
        if source is not None and not config["accept_other_data"]:
            directory.check_same_data(source)
        rank_zero_only(remove_orphans)(directory.path)
        rank_zero_only(directory.record_fit)(config, None if source is None else source.fingerprint())
        if start.validate:
            trainer.validate(**arguments)
            return
        preemption = next(each for each in _callbacks(trainer) if isinstance(each, Preemption))
        with preemption.request.listening():
            trainer.fit(**arguments)
        _say_end(trainer, directory, config)


def _callbacks(trainer: Trainer) -> list[Callback]:
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # given by the trainer's parts
    return found


def _say_end(trainer: Trainer, directory: RunDirectory, config: dict[str, Any]) -> None:
    step, most = trainer.global_step, trainer.max_steps
    if not trainer.should_stop or step == most:
        return
    timers = (each for each in _callbacks(trainer) if isinstance(each, Timer))
    if any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers):
        reason = "trainer.max_time"
    else:
        reason = "early stopping" if trainer.early_stopping_callbacks else "a callback"
    rank_zero_only(directory.record_end)(config, step, reason)
    say(f"Training is complete: {reason} ended it at step {step}" + (f" of {most}." if most != -1 else "."))
