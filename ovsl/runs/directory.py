"""The run directory: one folder for one run, which tells what ran and is never used for another."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import ovsl
from ovsl.errors import InputError
from ovsl.runs.data import Fingerprinted
from ovsl.runs.files import write_text

# Settings under which the same run may go on: they change how fast or how long it runs, not what it is.
NOT_IDENTITY = ("data.num_workers", "data.evaluation", "data.evaluation_batch_size")

Migration = Callable[[Mapping[str, Any]], dict[str, Any]]

_STEP = re.compile(r"step-(\d+)\.ckpt")


class RunDirectory:
    """A folder with `config.yaml`, `run.json`, `checkpoints/`, `results/`, `pictures/` and TensorBoard logs.

    Args:
        path: The folder; created when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def last_checkpoint(self) -> Path:
        """Link to the newest checkpoint of the run, whether it exists or not."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """Link to the best checkpoint by the monitored figure, whether it exists or not."""
        return self.path / "checkpoints" / "best.ckpt"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / "checkpoints" / f"step-{step}.ckpt"

    def saved_steps(self) -> list[int]:
        """List the steps whose checkpoints are there, the newest first."""
        found = (_STEP.fullmatch(file.name) for file in self.path.glob("checkpoints/step-*.ckpt"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def checkpoints(self) -> list[Path]:
        """Checkpoints that the run may go on from, the newest first."""
        # A `last.ckpt` that is no link was the only checkpoint of runs before 0.2, or came with a copied folder.
        last = self.last_checkpoint
        alone = [last] if last.is_file() and not last.is_symlink() else []
        return alone + [self.checkpoint(step) for step in self.saved_steps()]

    def newest_checkpoint(self) -> tuple[Path | None, list[str]]:
        """Find the newest checkpoint that is not damaged.

        Returns:
            The checkpoint, None where the run has none; and a sentence for each newer one that cannot be read.

        Raises:
            InputError: There are checkpoints, and none can be read.
        """
        from ovsl.runs.record import CheckpointRecord  # torch, which `ovsl report` does without

        complaints = []
        for path in self.checkpoints():
            try:
                CheckpointRecord.read(path)
            except InputError as error:
                complaints.append(str(error))
                continue
            return path, complaints
        if complaints:
            raise InputError(
                f"No checkpoint of {self.path} can be read: {complaints[0]} Remove `checkpoints` to start anew."
            )
        return None, []

    def check_same_run(self, config: dict[str, Any], migrate: Migration = dict) -> None:
        """Refuse a folder that holds a run with other settings.

        Args:
            config: The whole configuration of the run that wants to start, plain types.
            migrate: Brings the identity of an older run to the option names of today.

        Raises:
            InputError: With the first setting that differs.
        """
        # Without a checkpoint nothing of the earlier run can be lost, and a corrected command may start in its folder.
        if not self.checkpoints() or (content := self._record()) is None:
            return
        stored, wanted = migrate(content["identity"]), json.loads(json.dumps(identity(config)))
        # Options that another version of ovsl did not have, or no longer has, tell nothing about the run.
        same_version = content["starts"][0]["ovsl"] == ovsl.__version__ and stored == content["identity"]
        for key in sorted(stored.keys() | wanted.keys() if same_version else stored.keys() & wanted.keys()):
            if stored.get(key) != wanted.get(key):
                raise InputError(
                    f"{self.path} holds another run: {key} was {stored.get(key)!r} and is {wanted.get(key)!r} now; "
                    "choose another --run_dir, or go on with the run's own settings."
                )

    def create(self) -> None:
        """Make the folder.

        Raises:
            InputError: It cannot be made, or cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The run directory '{self.path}' cannot be made ({error.strerror}); choose another --run_dir."
            ) from error
        if not os.access(self.path, os.W_OK):
            raise InputError(f"The run directory '{self.path}' cannot be written to; choose another --run_dir.")

    def check_same_data(self, source: Fingerprinted) -> None:
        """Refuse to go on with other training data than the run began with.

        Args:
            source: Of the training data; pinned to the version that the run began with, where it has several.

        Raises:
            InputError: With what differs.
        """
        content = self._record() if self.checkpoints() else None
        stored = (content or {}).get("data")
        if not stored:
            return
        source.pin(stored)
        found = json.loads(json.dumps(source.fingerprint()))
        # Another commit may hold the same data.
        for key in sorted((stored.keys() & found.keys()) - {"commit"}):
            if stored[key] != found[key]:
                raise InputError(
                    f"{source.name} is not the data that the run in {self.path} began with: {key} was {stored[key]!r} "
                    f"and is {found[key]!r} now; bring the data back, choose another --run_dir, or go on all the same "
                    "with --accept_other_data true."
                )

    def is_validated(self, step: int, datasets: Collection[str]) -> bool:
        """Whether the results of the validation of a step are there.

        Args:
            step: Of the weights.
            datasets: Names of all evaluation datasets.
        """
        for name in datasets:
            try:
                if json.loads((self.path / "results" / f"validate-{name}.json").read_text())["step"] != step:
                    return False
            except (OSError, ValueError, KeyError, TypeError):
                return False
        return True

    def _record(self) -> dict[str, Any] | None:
        """Read what `run.json` says; None without one."""
        file = self.path / "run.json"
        if not file.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text())
            content["identity"].items(), content["starts"][0]["ovsl"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{file} is not a record that ovsl wrote ({type(error).__name__}); remove it if the run's settings are "
                "the ones given now."
            ) from error
        return content

    def record_fit(self, config: dict[str, Any], data: dict[str, Any] | None = None) -> None:
        """Write what is about to train; a resumed run keeps its first record and adds the start to it.

        Args:
            config: The whole configuration, plain types.
            data: Fingerprint of the training data.
        """
        record = self.path / "run.json"
        new: dict[str, Any] = {"identity": identity(config), "starts": []}
        content = (self._record() if self.checkpoints() else None) or new
        content["starts"].append(environment())
        content["data"] = data
        content.pop("ended", None)
        write_text(record, json.dumps(content, indent=1) + "\n")
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def record_end(self, config: dict[str, Any], step: int, reason: str) -> None:
        """Write that a run is complete before its last step.

        Args:
            config: The whole configuration, plain types.
            step: The last step.
            reason: What ended it.
        """
        if (content := self._record()) is not None:
            content["ended"] = {"step": step, "reason": reason, "limits": _limits(config)}
            write_text(self.path / "run.json", json.dumps(content, indent=1) + "\n")

    def end(self, config: dict[str, Any], step: int) -> str | None:
        """Tell what ended the run at a step, if it would end it again; None where it goes on.

        Args:
            config: The whole configuration, plain types.
            step: Of the newest checkpoint.
        """
        ended = (self._record() or {}).get("ended")
        if not ended or ended["step"] != step or ended["limits"] != json.loads(json.dumps(_limits(config))):
            return None
        return str(ended["reason"])

    def record_evaluation(self, verb: str, config: dict[str, Any]) -> None:
        """Write the configuration of a `validate`, `test` or `predict` beside that of the run."""
        self.create()
        write_text(self.path / f"config.{verb}.yaml", yaml.safe_dump(config, sort_keys=False))


@dataclass(frozen=True)
class Start:
    """What a start does in a run directory.

    Args:
        checkpoint: The checkpoint to load; None for fresh weights.
        message: What the user is told; None for nothing.
        complete: Whether the run is finished already and nothing is left to do.
        validate: Whether only the validation of the last step is left to do.
    """

    checkpoint: Path | None = None
    message: str | None = None
    complete: bool = False
    validate: bool = False


def plan(verb: str, config: dict[str, Any], method: str, trainable: bool, migrate: Migration = dict) -> Start:
    """Decide what a start does, by what lies in its run directory. Nothing is written.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        config: The whole configuration, plain types: `run_dir`, `ckpt_path`, `trainer`, `model`, `data`.
        method: Name of the method, for messages.
        trainable: Whether the method has anything to train.
        migrate: Brings the identity of an older run to the option names of today.

    Raises:
        InputError: Another run's folder, a method that has nothing to train, a trained one without a checkpoint.
    """
    directory = RunDirectory(Path(config["run_dir"]))
    given = config.get("ckpt_path") and Path(config["ckpt_path"])
    if verb == "fit" and not trainable:
        raise InputError(f"{method} has nothing to train; use `ovsl test` or `ovsl predict` at once.")
    if config["trainer"].get("fast_dev_run"):
        return Start(given)
    foreign = next(iter(sorted(directory.path.glob("hpc_ckpt_*"))), None)
    if foreign is not None and given is None:
        # The trainer takes such a file before anything else in a SLURM job, whatever run it is of.
        raise InputError(f"{foreign} is a preemption checkpoint that ovsl did not write; move it out of the folder.")
    if verb == "fit":
        directory.check_same_run(config, migrate)
    elif given is not None or not trainable:
        return Start(given)
    checkpoint, complaints = (given, []) if given is not None else directory.newest_checkpoint()
    if checkpoint is None:
        if verb == "fit":
            return Start()
        raise InputError(
            f"{method} is trained, but no checkpoint was given and {directory.last_checkpoint} does not exist; give "
            "--ckpt_path FILE, or --run_dir with the folder of a finished `ovsl fit`."
        )
    if verb != "fit":
        return Start(checkpoint, _sentences(complaints, f"Taking {checkpoint}." if complaints else None))
    from ovsl.runs.record import CheckpointRecord  # torch, which `ovsl report` does without

    record = CheckpointRecord.read(checkpoint)
    step, most = record.step, config["trainer"].get("max_steps")
    if given is None and (reason := directory.end(config, step)) is not None:
        message = f"{directory.path} is complete: {reason} ended it at step {step}. Change that to go on."
        return Start(checkpoint, _sentences(complaints, message), complete=True)
    if most in (None, -1) or step < most:
        resuming = f"Resuming {config['run_dir']} from step {step}." if given is None else None
        return Start(checkpoint, _sentences(complaints, resuming))
    datasets = ((config["data"] or {}).get("init_args") or {}).get("evaluation") or {}
    if record.validation_owed and not directory.is_validated(step, datasets):
        message = f"Training of {directory.path} is complete; its last validation was cut short and is done again."
        return Start(checkpoint, _sentences(complaints, message), validate=True)
    message = f"{directory.path} is complete: {most} of {most} steps. Raise trainer.max_steps to go on."
    return Start(checkpoint, _sentences(complaints, message), complete=True)


def _limits(config: dict[str, Any]) -> dict[str, Any]:
    """Give what decides when a run ends."""
    trainer = config["trainer"]
    return {key: trainer.get(key) for key in ("max_steps", "max_epochs", "max_time", "min_steps", "callbacks")}


def _sentences(complaints: list[str], message: str | None) -> str | None:
    return "\n".join([*complaints, *([message] if message else [])]) or None


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten what makes a run this run, seed, model and data settings, to `a.b.c` keys."""
    flat: dict[str, Any] = {"seed_everything": config.get("seed_everything")}

    def flatten(prefix: str, value: Any) -> None:
        if prefix in NOT_IDENTITY:
            return
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if key != "init_args" else prefix, inner)
        else:
            flat[prefix] = value

    flatten("model", config.get("model"))
    flatten("data", config.get("data"))
    return flat


def environment() -> dict[str, Any]:
    """Versions, command and time of a start."""
    import torch  # here, since tables of results need none of it and its import takes seconds

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "ovsl": ovsl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": platform.node(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
