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
        log = _Log(total, what)
        yield _Count(done, log)
        log.end()


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


class _Log:
    """A line now and then."""

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self.start = time.monotonic()
        self.spoken, self.next_line = False, self.start + SILENT

    def __call__(self, done: int) -> None:
        if done < self.total and (now := time.monotonic()) >= self.next_line:
            self.spoken, self.next_line = True, now + INTERVAL
            print(f"{self.what}: {done} of {self.total}, {now - self.start:.0f} s", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.spoken:
            print(f"{self.what}: done, {time.monotonic() - self.start:.0f} s", file=sys.stderr, flush=True)
