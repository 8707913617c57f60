"""Image files that a user names, and what they are called."""

from __future__ import annotations

import re
from pathlib import Path

from ovsl.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def find_images(paths: list[str]) -> tuple[list[Path], list[str]]:
    """Image files named directly or lying in folders, folders in natural order (`2.jpg` before `10.jpg`).

    Args:
        paths: Files and folders.

    Returns:
        The files, and for each an id: its path below the given folder without the suffix, made distinct by the
        suffix or a number where two files would share it.

    Raises:
        InputError: A path does not exist, or there is no image at all.
    """
    found: list[tuple[Path, Path]] = []
    for path in (Path(p).expanduser() for p in paths):
        if path.is_dir():
            found += [(file, file.relative_to(path)) for file in images_below(path)]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise InputError(f"There is no image file or folder '{path}': check data.images.")
    if not found:
        raise InputError(
            f"No image ({', '.join(sorted(IMAGE_SUFFIXES))}) in '{', '.join(paths)}': "
            "set data.images to files or folders."
        )
    ids: dict[str, None] = {}
    for _, name in found:
        id, number = name.with_suffix("").as_posix(), 2
        if id in ids:
            id = base = name.as_posix().replace(".", "-")
            while id in ids:
                id, number = f"{base}-{number}", number + 1
        ids[id] = None
    return [file for file, _ in found], list(ids)


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and its sub-folders, in natural order."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which digits compare as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", path.as_posix())]
