"""Prompt template sets: the sentences in which a class name is shown to the text encoder."""

import difflib
import json
from functools import lru_cache
from importlib import resources

from ovsl.errors import InputError


@lru_cache
def _template_sets() -> dict[str, tuple[str, ...]]:
    text = resources.files("ovsl.vocabulary").joinpath("data", "templates.json").read_text(encoding="utf-8")
    return {name: tuple(entry["templates"]) for name, entry in json.loads(text)["templates"].items()}


def available_templates() -> tuple[str, ...]:
    """Names of the template sets, e.g. `imagenet_80` (CLIP), `vild_14` (FC-CLIP, SAN), `zegclip_15`."""
    return tuple(sorted(_template_sets()))


def load_templates(name: str) -> tuple[str, ...]:
    """Load a template set.

    Args:
        name: One of `available_templates()`.

    Returns:
        The templates in their published order; each holds one `{}` for the class name.

    Raises:
        InputError: If there is no such set.
    """
    sets = _template_sets()
    if name not in sets:
        close = difflib.get_close_matches(name, sets, n=1)
        hint = f"did you mean '{close[0]}'? Available" if close else "available"
        raise InputError(f"unknown template set '{name}': {hint}: {', '.join(available_templates())}.")
    return sets[name]
