"""Files that are written whole or not at all, and names from data that stay in their folder."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ovsl.errors import InputError

FOREIGN_ORPHAN_AGE = 600.0
"""Seconds after which an unfinished file of another machine counts as left by a dead process."""

_LONGEST_NAME = 200
_PARTIAL = re.compile(r"\.(?P<host>[^.]+)\.(?P<pid>\d+)\.partial$")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, whose file takes the place of `path` when all of it is on the disk.

    The temporary file lies beside the target, since a rename is atomic only within a file system. After an error
    nothing is left of it and the old file stands.

    Args:
        path: The file; its folder is made if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{host_name()}.{os.getpid()}.partial")
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


def link(path: Path, target: Path) -> None:
    """Let `path` stand for a file beside it, at once for whoever reads it; a copy where there are no symbolic links.

    Args:
        path: The link.
        target: A file in the same folder.
    """
    partial = path.with_name(f"{path.name}.{host_name()}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(target.name)
    except OSError:
        with whole_file(path) as copy:
            copy.write_bytes(target.read_bytes())
        return
    partial.replace(path)
    _sync_folder(path.parent)


def remove_orphans(folder: Path) -> list[Path]:
    """Remove what killed processes were writing when they died, at any depth.

    Args:
        folder: Of a run.

    Returns:
        What was removed: files of processes of this machine that are gone, and old ones of other machines.
    """
    removed = []
    for file in folder.rglob("*.partial"):
        match = _PARTIAL.search(file.name)
        if match is None:
            continue
        if match["host"] == host_name():
            orphan = not is_running(int(match["pid"]))
        else:
            orphan = time.time() - file.lstat().st_mtime > FOREIGN_ORPHAN_AGE
        if orphan:
            file.unlink(missing_ok=True)
            removed.append(file)
    return removed


def path_below(folder: Path, name: str) -> Path:
    """Give the path of a name that comes from data, such as an id with slashes.

    Args:
        folder: What the path has to lie in.
        name: Parts separated by `/`.

    Raises:
        InputError: The name leaves the folder, or no file can have it.
    """
    parts = PurePosixPath(name).parts
    plain = all(part not in ("..", "/") and len(part.encode()) <= _LONGEST_NAME for part in parts)
    if not parts or not plain or "\\" in name or any(ord(letter) < 32 for letter in name):
        raise InputError(
            f"The id {name[:80]!r} cannot be the name of a file in {folder}: give the data ids that are relative paths "
            f"without '..', of at most {_LONGEST_NAME} bytes a part."
        )
    return folder.joinpath(*parts)


def host_name() -> str:
    """Name of this machine, without its domain."""
    return socket.gethostname().split(".")[0] or "localhost"


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
