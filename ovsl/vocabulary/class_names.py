"""Names that a method shows to the text encoder in place of those of a vocabulary."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from ovsl.errors import InputError


@lru_cache
def _class_name_sets() -> dict[str, dict[str, Any]]:
    text = resources.files("ovsl.vocabulary").joinpath("data", "class_names.json").read_text(encoding="utf-8")
    return {name: entry["names"] for name, entry in json.loads(text)["class_names"].items()}


def available_class_names() -> tuple[str, ...]:
    """Return the names of the sets that are shipped, e.g. `denseclip_ade20k`."""
    return tuple(sorted(_class_name_sets()))


def load_class_names(names: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Load a set of class names.

    Args:
        names: One of `available_class_names()`; or the names themselves, class -> name; or None for no other names.

    Returns:
        Class -> name, or names that are asked one by one; classes that it lacks keep their own.

    Raises:
        InputError: If there is no such set.
    """
    if not isinstance(names, str):
        return dict(names or {})
    sets = _class_name_sets()
    if names not in sets:
        close = difflib.get_close_matches(names, sets, n=1)
        hint = f"did you mean '{close[0]}'? Available" if close else "available"
        raise InputError(f"unknown class names '{names}': {hint}: {', '.join(available_class_names())}.")
    return dict(sets[names])
