"""The run directory: one folder for one run, which tells what ran and is never used for another."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import ovsl
from ovsl.errors import InputError
from ovsl.runs.files import write_text

# Settings under which the same run may go on: they change how fast or how long it runs, not what it is.
NOT_IDENTITY = ("data.num_workers", "data.evaluation", "data.evaluation_batch_size")


class RunDirectory:
    """A folder with `config.yaml`, `run.json`, `checkpoints/`, `results/`, `pictures/` and TensorBoard logs.

    Args:
        path: The folder; created when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint of the run, whether it exists or not."""
        return self.path / "checkpoints" / "last.ckpt"

    def check_same_run(self, config: dict[str, Any]) -> None:
        """Refuse a folder that holds a run with other settings.

        Args:
            config: The whole configuration of the run that wants to start, plain types.

        Raises:
            InputError: With the first setting that differs.
        """
        record = self.path / "run.json"
        # Without a checkpoint nothing of the earlier run can be lost, and a corrected command may start in its folder.
        if not record.is_file() or not self.last_checkpoint.is_file():
            return
        content = json.loads(record.read_text())
        stored, wanted = content["identity"], json.loads(json.dumps(identity(config)))
        # Options that another version of ovsl did not have, or no longer has, tell nothing about the run.
        same_version = content["starts"][0]["ovsl"] == ovsl.__version__
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

    def record_fit(self, config: dict[str, Any]) -> None:
        """Write what is about to train; a resumed run keeps its first record and adds the start to it."""
        self.create()
        record = self.path / "run.json"
        new: dict[str, Any] = {"identity": identity(config), "starts": []}
        content = json.loads(record.read_text()) if self.last_checkpoint.is_file() and record.is_file() else new
        content["starts"].append(environment())
        write_text(record, json.dumps(content, indent=1) + "\n")
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

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
    """

    checkpoint: Path | None = None
    message: str | None = None
    complete: bool = False


def plan(verb: str, config: dict[str, Any], method: str, trainable: bool) -> Start:
    """Decide what a start does, by what lies in its run directory. Nothing is written.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        config: The whole configuration, plain types: `run_dir`, `ckpt_path`, `trainer`, `model`, `data`.
        method: Name of the method, for messages.
        trainable: Whether the method has anything to train.

    Raises:
        InputError: Another run's folder, a method that has nothing to train, a trained one without a checkpoint.
    """
    directory = RunDirectory(Path(config["run_dir"]))
    given, last = config.get("ckpt_path"), directory.last_checkpoint
    debug, most = bool(config["trainer"].get("fast_dev_run")), config["trainer"].get("max_steps")
    if verb == "fit" and not trainable:
        raise InputError(f"{method} has nothing to train; use `ovsl test` or `ovsl predict` at once.")
    if debug:
        return Start(given and Path(given))
    if verb != "fit":
        if given is not None or not trainable:
            return Start(given and Path(given))
        if not last.is_file():
            raise InputError(
                f"{method} is trained, but no checkpoint was given and {last} does not exist; give --ckpt_path FILE, "
                "or --run_dir with the folder of a finished `ovsl fit`."
            )
        return Start(last)
    directory.check_same_run(config)
    checkpoint = Path(given) if given is not None else last if last.is_file() else None
    if checkpoint is None:
        return Start()
    from ovsl.runs.record import CheckpointRecord  # torch, which `ovsl report` does without

    step = CheckpointRecord.read(checkpoint).step
    if most not in (None, -1) and step >= most:
        message = f"{directory.path} is complete: {most} of {most} steps. Raise trainer.max_steps to go on."
        return Start(checkpoint, message, complete=True)
    return Start(checkpoint, f"Resuming {config['run_dir']} from step {step}." if given is None else None)


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
