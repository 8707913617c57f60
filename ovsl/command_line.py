"""What a command names, before its parser is built."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ovsl.methods
from ovsl.given import given_options
from ovsl.renamed import migrate
from ovsl.runs.directory import RunDirectory
from ovsl.runs.record import CheckpointRecord
from ovsl.runs.trust import check_settings, foreign_name


def method_asked_about(args: Sequence[str]) -> str | None:
    """Describe the method whose options `--model.help` asks for: what it does and the paper that it comes from.

    Args:
        args: The words after the verb.

    Returns:
        Its docstring without the options; None where no method of ovsl is asked for.
    """
    asked = next((name for word, name in pairwise(args) if word == "--model.help"), "").rpartition(".")[2]
    if asked not in ovsl.methods.__all__:
        return None
    return (inspect.getdoc(getattr(ovsl.methods, asked)) or "").partition("\nArgs:")[0].strip()


def recorded_model(args: Sequence[str]) -> dict[str, Any] | None:
    """Read how the model was built whose checkpoint a command names, for what the user does not say.

    Args:
        args: The words after the verb.

    Returns:
        `class_path` and `init_args` by the names of today; None where nothing is known, or where the settings name
        foreign classes and the user gives a model.

    Raises:
        InputError: The settings name classes that a checkpoint may not name.
    """
    path = named_checkpoint(args)
    settings = None if path is None else CheckpointRecord.read(path).settings
    if settings is None or (foreign_name(settings) is not None and _names_model(args)):
        return None
    check_settings(settings)
    return migrate(settings)


def named_checkpoint(args: Sequence[str]) -> Path | None:
    """Find the checkpoint that a command names, by `ckpt_path` or by its `run_dir`, in its files or on its line."""
    given = given_options(args, "ckpt_path", "run_dir")
    if "ckpt_path" in given:
        return Path(given["ckpt_path"])
    return RunDirectory(Path(given["run_dir"])).newest_checkpoint()[0] if "run_dir" in given else None


def _names_model(args: Sequence[str]) -> bool:
    given = given_options(args, "model", "model.class_path")
    model = given.get("model")
    return isinstance(model, str) or "model.class_path" in given or (isinstance(model, dict) and "class_path" in model)
