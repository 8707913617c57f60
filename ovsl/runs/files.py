"""Writing files so that a crash leaves the old one or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, whose file takes the place of `path` when all of it is on the disk.

    The temporary file lies beside the target, since a rename is atomic only within a file system. After an error
    nothing is left of it and the old file stands.

    Args:
        path: The file; its folder is made if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Args:
        path: The file; its folder is made if needed.
        text: UTF-8 content.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; some file systems cannot open folders, and there is nothing to sync then."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
