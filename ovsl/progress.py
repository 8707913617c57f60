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
Advance = Callable[[int], object]

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
    with counting(len(items), what) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counting(total: int, what: str, done: int = 0) -> Iterator[Advance]:
    """Say on the error stream how far something is that goes on by itself.

    Args:
        total: Items in all.
        what: Says what is done, such as "Converting".
        done: Items that were done before.

    Yields:
        To be called with the number of items that were finished.
    """
    watcher = _watcher.get()
    if watcher is not None:
        watcher(done, total, what)
        yield _Count(done, lambda now: watcher(now, total, what) if now < total else None)
    elif os.environ.get("LOCAL_RANK", "0") != "0":
        yield lambda number: None
    elif sys.stderr.isatty():
        with tqdm(
            total=total, initial=done, desc=what, delay=SILENT, leave=False, dynamic_ncols=True, file=sys.stderr
        ) as bar:
            yield bar.update
    else:
        lines = Lines(what)
        yield _Count(done, lambda now: lines.at(now, total) if now < total else None)
        lines.end()


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


class _Count:
    """Adds up what is finished, and tells how much it is."""

    def __init__(self, done: int, tell: Callable[[int], None]) -> None:
        self.done = done
        self.tell = tell

    def __call__(self, number: int) -> None:
        self.done += number
        self.tell(self.done)


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
