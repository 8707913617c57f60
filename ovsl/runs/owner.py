"""One owner for a run directory: a lock that a dead process does not hold, on any file system and across nodes."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ovsl.errors import InputError
from ovsl.runs.files import host_name, is_running, write_text

BEAT = 10.0
"""Seconds between two signs of life."""

PATIENCE = 3 * BEAT
"""Seconds without one after which an owner on another machine counts as dead."""


class RunLock:
    """Owns a run directory while it is entered.

    `owner.json` names machine and process. An owner on this machine is asked after directly; one on another machine
    has to show a sign of life within `PATIENCE` seconds, told by a change of the file and not by clocks.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "owner.json"
        self._content: dict[str, Any] = {
            "host": host_name(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._beats = 0
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Exclusive creation is atomic on network file systems too.
            with self.file.open("x") as file:
                file.write(self._text())
        except FileExistsError:
            self._take_over()
        threading.Thread(target=self._beat, daemon=True, name="owner of the run directory").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        if self._is_own():
            self.file.unlink(missing_ok=True)

    def _take_over(self) -> None:
        """Take the place of a dead owner.

        Raises:
            InputError: It lives.
        """
        owner = _read(self.file)
        if owner is not None and self._lives(owner):
            raise InputError(
                f"{self.file.parent} belongs to a run that is alive (process {owner.get('pid')} on "
                f"{owner.get('host')}): wait for it, stop it, or choose another --run_dir."
            )
        write_text(self.file, self._text())
        # Of several that found the owner dead, the last to write has it.
        time.sleep(0.2)
        if not self._is_own():
            raise InputError(f"{self.file.parent} was taken by another process just now: choose another --run_dir.")

    def _lives(self, owner: dict[str, Any]) -> bool:
        if owner.get("machine") == self._content["machine"]:
            pid = owner.get("pid")
            return isinstance(pid, int) and is_running(pid) and owner.get("started") == _started(pid)
        before, deadline = self._bytes(), time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, PATIENCE / 10))
            if self._bytes() != before:
                return self.file.exists()
        return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            if not self._is_own():
                return
            self._beats += 1
            # A full disk must not end a run whose weights still have a place.
            with suppress(OSError):
                write_text(self.file, self._text())

    def _is_own(self) -> bool:
        return (_read(self.file) or {}).get("token") == self._content["token"]

    def _bytes(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError:
            return b""

    def _text(self) -> str:
        return json.dumps({**self._content, "beats": self._beats}) + "\n"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _machine() -> str:
    """Name what has one numbering of processes: a boot of a machine, or a container on it."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host_name()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return host_name()


def _started(pid: int) -> str | None:
    """When a process started, in ticks of its machine, which tells it from a later one of the same number."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None
