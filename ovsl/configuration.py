"""Configuration files that say only what differs from another one: `base: voc_inductive.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ovsl.errors import InputError
from ovsl.shipped import PREFIX, configuration_file, nearest_beside

BASE = "base"


def read_configuration(file: Path) -> Any:
    """Read a YAML file, put on top of the file that its entry `base` names, if it has one.

    The base is named by its path from the folder of the file, or as a shipped one (`ovsl:zegclip/voc_inductive`), and
    may have a base too. What the parser gets has no entry `base` any more. See `merged` for what wins.

    Args:
        file: The file.

    Raises:
        InputError: The base does not exist or is no dictionary in YAML, or files are their own base.
        OSError: The file itself cannot be read.
        yaml.YAMLError: It is not YAML.
    """
    content = yaml.safe_load(file.read_text())
    above = [file]
    while isinstance(content, dict) and BASE in content:
        below = _base(above[-1], content.pop(BASE))
        above.append(below)
        if below.resolve() in {each.resolve() for each in above[:-1]}:
            raise InputError(f"A configuration cannot be its own base: {' -> '.join(map(str, above))}.")
        try:
            content = merged(yaml.safe_load(below.read_text()), content)
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise InputError(f"{above[-2]} builds on {below}, which cannot be read ({error}).") from error
    return content


def merged(below: Any, above: Any) -> Any:
    """Put a part of a configuration on top of another.

    Dictionaries are merged entry by entry, at any depth; of everything else, lists too, the upper one stays. Another
    `class_path` brings its own options with it, and none of the lower class's stay.

    >>> merged({"a": {"x": 1, "y": [1]}}, {"a": {"y": [2]}, "b": 3})
    {'a': {'x': 1, 'y': [2]}, 'b': 3}
    """
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if above.get("class_path", below.get("class_path")) != below.get("class_path"):
        return above
    return below | {key: merged(below.get(key), value) for key, value in above.items()}


def _base(file: Path, named: Any) -> Path:
    if not isinstance(named, str):
        raise InputError(f"`base` of {file} is {named!r}: give the name of one file.")
    base = configuration_file(named) if named.startswith(PREFIX) else file.parent / named
    if not base.is_file():
        near = nearest_beside(base)
        hint = f"did you mean {near.name}?" if near else "its path counts from the folder of the file."
        raise InputError(f"{file} builds on {base}, which does not exist: {hint}")
    return base
