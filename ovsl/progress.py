"""How far long work is: a bar on a terminal, a line now and then in a log, and nothing for what is done at once."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

SILENT, INTERVAL = 2.0, 15.0
"""Seconds before the first word of it, and between two lines of a log."""

Item = TypeVar("Item")
Watcher = Callable[[int, int, str], None]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Go through items and say on the error stream how far it is.

    The first process of several speaks for all.

    Args:
        items: What is worked on, one by one.
        what: Says what is done, such as "Embedding words".

    Yields:
        The items.
    """
    watcher = _watcher.get()
    if watcher is not None:
        yield from _watched(items, what, watcher)
    elif os.environ.get("LOCAL_RANK", "0") != "0":
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, desc=what, delay=SILENT, leave=False, dynamic_ncols=True, file=sys.stderr)
    else:
        yield from _logged(items, what)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Say on the error stream that something goes on whose end nobody knows.

    Args:
        what: Says what is done, such as "Exporting".
    """
    start, over = time.monotonic(), threading.Event()

    def speak() -> None:
        wait = SILENT
        while not over.wait(wait):
            print(f"{what}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            wait = INTERVAL

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Hand the progress of what is done inside to a function instead, such as the bar of a page.

    Args:
        watcher: Called with the number of items done, that of all, and what is done.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _watched(items: Sequence[Item], what: str, watcher: Watcher) -> Iterator[Item]:
    for done, item in enumerate(items):
        watcher(done, len(items), what)
        yield item


def _logged(items: Sequence[Item], what: str) -> Iterator[Item]:
    lines = Lines(what)
    for done, item in enumerate(items):
        lines.at(done, len(items))
        yield item
    lines.end()


class Lines:
    """Lines of a log now and then; none of what is over at once.

    Args:
        what: Says what is done, such as "Embedding words".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._start = time.monotonic()
        self._next = self._start + SILENT
        self._spoken = False

    def at(self, done: int, of: int | None = None, more: Callable[[], str] = str) -> None:
        """Say how far it is, where it is time to.

        Args:
            done: What is done of it.
            of: Of how much; None where nobody knows.
            more: Gives what stands behind; asked only where something is said.
        """
        if (now := time.monotonic()) < self._next:
            return
        self._spoken, self._next = True, now + INTERVAL
        far = f"{done}" if of is None else f"{done} of {of}"
        behind = more()
        self._say(f"{far}, {now - self._start:.0f} s" + (f", {behind}" if behind else ""))

    def end(self) -> None:
        """Say that it is done, where anything was said of it."""
        if self._spoken:
            self._say(f"done, {time.monotonic() - self._start:.0f} s")

    def _say(self, text: str) -> None:
        print(f"{self.what}: {text}", file=sys.stderr, flush=True)
