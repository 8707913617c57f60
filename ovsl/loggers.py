"""Loggers that belong to a run: whatever is not said of where they write is its directory."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import yaml
from lightning.pytorch import loggers

LOGGER = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "", "name": "", "version": "", "default_hp_metric": False},
}
"""The default logger. Another one takes over what it knows of these: no `save_dir` means the run directory."""

_OPTIONS = ("--trainer.logger", "--trainer.logger+")


def complete_content(content: Any) -> Any:
    """Let the loggers of a list in a configuration file take over what the parser hands on to a single one alone.

    Args:
        content: Of the file.
    """
    trainer = content.get("trainer") if isinstance(content, dict) else None
    if not isinstance(trainer, dict):
        return content
    lists = {key: trainer[key] for key in ("logger", "logger+") if isinstance(trainer.get(key), list)}
    return content | {"trainer": trainer | {key: _completed(each) for key, each in lists.items()}}


def complete_line(args: Sequence[str]) -> list[str]:
    """Do the same for the loggers that a command line lists or adds."""
    line = list(args)
    for position, (word, following) in enumerate(pairwise([*args, ""])):
        option, equals, value = word.partition("=")
        if option not in _OPTIONS:
            continue
        try:
            named = yaml.safe_load(value if equals else following)
        except yaml.YAMLError:
            continue  # for the parser to say
        if isinstance(named, list) or (option.endswith("+") and named):
            written = json.dumps(_completed(named if isinstance(named, list) else [named]))
            line[position + (not equals)] = f"{option}={written}" if equals else written
    return line


def set_folder(logger: Any, run_dir: str) -> None:
    """Let parsed loggers, one or a list, write into a run's directory unless they have a place of their own."""
    for each in logger if isinstance(logger, list) else [logger]:
        if getattr(each, "init_args", None) and each.init_args.get("save_dir") == "":
            each.init_args.save_dir = run_dir


def _completed(named: list[Any]) -> list[Any]:
    return [_complete(each) for each in named]


def _complete(logger: Any) -> Any:
    given = {"class_path": logger} if isinstance(logger, str) else logger
    if not isinstance(given, dict) or "class_path" not in given:
        return logger
    kind = getattr(loggers, str(given["class_path"]).rpartition(".")[2], None)
    if kind is None:
        return logger
    takes = inspect.signature(kind).parameters
    own = {name: value for name, value in LOGGER["init_args"].items() if name in takes}  # type: ignore[attr-defined]
    return given | {"init_args": own | (given.get("init_args") or {})}
