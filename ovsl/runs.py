"""The run directory: one folder for one run, which tells what ran and is never used for another."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

import ovsl
from ovsl.errors import InputError
from ovsl.files import write_text

# Settings under which the same run may go on: they change how fast or how long it runs, not what it is.
NOT_IDENTITY = ("num_workers", "evaluation", "evaluation_batch_size")


class RunDirectory:
    """A folder with ``config.yaml``, ``run.json``, ``checkpoints/``, ``results/``, ``pictures/`` and TensorBoard logs.

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
        stored = json.loads(record.read_text())["identity"]
        wanted = json.loads(json.dumps(identity(config)))
        for key in sorted(stored.keys() | wanted.keys()):
            if stored.get(key) != wanted.get(key):
                raise InputError(
                    f"{self.path} holds another run: {key} was {stored.get(key)!r} and is {wanted.get(key)!r} now; "
                    "choose another --run_dir, or go on with the run's own settings."
                )

    def record_fit(self, config: dict[str, Any]) -> None:
        """Write what is about to train; a resumed run keeps its first record and adds the start to it."""
        record = self.path / "run.json"
        new: dict[str, Any] = {"identity": identity(config), "starts": []}
        content = json.loads(record.read_text()) if self.last_checkpoint.is_file() and record.is_file() else new
        content["starts"].append(environment())
        write_text(record, json.dumps(content, indent=1) + "\n")
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def record_evaluation(self, verb: str, config: dict[str, Any]) -> None:
        """Write the configuration of a ``validate``, ``test`` or ``predict`` beside that of the run."""
        write_text(self.path / f"config.{verb}.yaml", yaml.safe_dump(config, sort_keys=False))


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this run: seed, model and data settings, flattened to ``a.b.c`` keys."""
    flat: dict[str, Any] = {"seed_everything": config.get("seed_everything")}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                if key not in NOT_IDENTITY:
                    flatten(f"{prefix}.{key}" if key != "init_args" else prefix, inner)
        else:
            flat[prefix] = value

    flatten("model", config.get("model"))
    flatten("data", config.get("data"))
    return flat


def environment() -> dict[str, Any]:
    """Versions, command and time of a start."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "ovsl": ovsl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": platform.node(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
