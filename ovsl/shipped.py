"""Configurations that come with ovsl: `-c ovsl:zegclip/voc_inductive` wherever a configuration file is taken.

They are the folders `configs` and `experiments` at the top of the repository; a wheel carries copies of both beside
this file.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ovsl.errors import InputError

PREFIX = "ovsl:"


def configuration_file(given: str) -> Path:
    """Find what a user means by the name of a configuration: a file, or a shipped one as `ovsl:NAME`.

    Raises:
        InputError: There is no shipped one of this name.
    """
    return shipped_configuration(given.removeprefix(PREFIX)) if given.startswith(PREFIX) else Path(given)


def shipped_configuration(name: str) -> Path:
    """File of a shipped configuration.

    Args:
        name: Path below `experiments` (`zegclip/voc_inductive`) or `configs` (`methods/maskclip`,
            `data/toy`, `trainer/cpu`), without suffix.

    Raises:
        InputError: There is none of this name.
    """
    available = shipped_configurations()
    if name not in available:
        close = difflib.get_close_matches(name, available, n=4)
        tops = sorted({each.partition("/")[0] for each in available})
        hint = f"did you mean {' or '.join(close)}?" if close else f"names begin with {', '.join(tops)}."
        raise InputError(f"There is no shipped configuration '{name}': {hint}")
    return available[name]


def nearest_beside(missing: Path) -> Path | None:
    """Find the configuration file in the folder of a missing one whose name is nearest to its name, if one is near."""
    there = [file.name for file in missing.parent.glob("*.yaml")] if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, there, n=1)
    return missing.parent / close[0] if close else None


def shipped_configurations() -> dict[str, Path]:
    """Files of all shipped configurations by name."""
    package = Path(__file__).parent
    # In a wheel the folders lie in the package, in a source tree beside it.
    root = package / "_shipped" if (package / "_shipped").is_dir() else package.parent
    return {
        file.relative_to(root / folder).with_suffix("").as_posix(): file
        for folder in ("configs", "experiments")
        for file in sorted((root / folder).rglob("*.yaml"))
    }
