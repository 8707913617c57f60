"""Signals that ask a run to stop: remembered when they come, answered between two steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Preemption and time limits (TERM, USR1), Ctrl-C (INT), a terminal that closes (HUP)."""

REQUEUE: int | None = getattr(signal, "SIGUSR1", None)
"""The signal by which a job script announces its time limit: the job is to go on in another allocation."""


class StopRequest:
    """Whether a signal asked this process to stop.

    The handler only notes the signal: collectives and files inside it would meet a process that is in the middle of a
    step. A second Ctrl-C is answered at once, by `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._owner = 0

    def listen(self) -> dict[int, Any]:
        """Note signals from now on, in this process alone and not in those that it forks.

        Returns:
            The handlers that there were before.
        """
        self._owner = os.getpid()
        return {number: signal.signal(number, self._note) for number in STOPPING}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals for a while."""
        self.signal = None
        before = self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        # A request to go on elsewhere is not forgotten over a later one that only ends the run.
        if self.signal != REQUEUE:
            self.signal = number
