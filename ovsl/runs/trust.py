"""What a file from somebody else may name: a configuration is code, a checkpoint is not."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from ovsl.errors import InputError

DEFINED_BY = ("ovsl", "torch", "lightning")
"""Packages whose classes the settings in a checkpoint may name."""


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse settings of a checkpoint that would have foreign modules imported.

    Args:
        settings: `class_path` and `init_args`, nested at will.

    Raises:
        InputError: They name a class or function that neither ovsl nor torch nor lightning defines.
    """
    name = foreign_name(settings)
    if name is not None:
        raise InputError(
            f"The settings in the checkpoint name {name!r}, which {', '.join(DEFINED_BY)} do not define and a "
            "checkpoint may not have imported: give the model's own configuration with -c, if you trust it."
        )


def foreign_name(settings: dict[str, Any]) -> str | None:
    """Find what settings name that neither ovsl nor torch nor lightning defines; see `check_settings`."""
    parted = ((name, name.split(".")) for name in _names(settings))
    return next((name for name, parts in parted if len(parts) > 1 and parts[0] not in DEFINED_BY), None)


def _names(node: Any) -> Iterator[str]:
    """All that a parser would import to build a node, the outer names first."""
    if isinstance(node, list):
        for entry in node:
            yield from _names(entry)
    if not isinstance(node, dict):
        return
    owner = node.get("class_path")
    if owner is not None:
        yield str(owner)
    arguments = node.get("init_args", {}) if owner is not None else node
    for key, value in arguments.items() if isinstance(arguments, dict) else ():
        # A text where a class or a function is wanted is its name.
        if isinstance(value, str) and owner is not None and not _takes_text(str(owner), key):
            yield value
        yield from _names(value)
    for key, value in node.items():
        if owner is not None and key not in ("class_path", "init_args"):
            yield from _names(value)


def _takes_text(owner: str, argument: str) -> bool:
    """Whether an argument of a class is declared as text, for classes of ours; others hold no classes as text."""
    module, _, name = owner.rpartition(".")
    if module.split(".")[0] != "ovsl":
        return True
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return True
    for ancestor in inspect.getmro(found) if inspect.isclass(found) else ():
        parameter = inspect.signature(vars(ancestor).get("__init__", object.__init__)).parameters.get(argument)
        if parameter is not None:
            return "str" in str(parameter.annotation) or "Literal" in str(parameter.annotation)
    return False
