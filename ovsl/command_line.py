"""What a command names, before its parser is built: it decides which defaults the parser has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovsl.configuration import read_configuration
from ovsl.methods.renamed import migrate
from ovsl.runs.directory import RunDirectory
from ovsl.runs.record import CheckpointRecord
from ovsl.runs.trust import check_settings, foreign_name
from ovsl.shipped import configuration_file


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
    given = _given(args, "ckpt_path", "run_dir")
    if "ckpt_path" in given:
        return Path(given["ckpt_path"])
    return RunDirectory(Path(given["run_dir"])).newest_checkpoint()[0] if "run_dir" in given else None


def _names_model(args: Sequence[str]) -> bool:
    given = _given(args, "model", "model.class_path")
    model = given.get("model")
    return isinstance(model, str) or "model.class_path" in given or (isinstance(model, dict) and "class_path" in model)


def _given(args: Sequence[str], *names: str) -> dict[str, Any]:
    """Find what a command gives for some options, in its files or on its line."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("-c", "--config", action="append", default=[], type=configuration_file)
    for name in names:
        scout.add_argument(f"--{name}")
    line, _ = scout.parse_known_args(args)
    # What is wrong with a file is for the real parser to say.
    files = [read_configuration(file) for file in line.config if file.is_file()]
    given: dict[str, Any] = {}
    for source in (*(file for file in files if isinstance(file, dict)), vars(line)):
        given |= {name: source[name] for name in names if source.get(name) is not None}
    return given
