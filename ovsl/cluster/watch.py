"""Watching the processes of one run: which of them is behind when none goes on."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ovsl.runs.files import host_name

SILENT_BEATS = 3
"""Beats without a change after which a process gives no sign of life."""


class Store(Protocol):
    """What processes tell each other by: a store of `torch.distributed`."""

    def set(self, key: str, value: str) -> None:
        """Say something."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys have been set."""

    def get(self, key: str) -> bytes:
        """Hear something."""


@dataclass(frozen=True)
class Sign:
    """What a process last said of itself.

    Args:
        beat: Counts while the process lives.
        moves: Counts what its main thread began.
        order: How far it is: of two processes that are to do the same, the one behind has the smaller.
        doing: What its main thread does, for people.
        home: Machine and number of the process.
    """

    beat: int
    moves: int
    order: tuple[int, ...]
    doing: str
    home: str

    def text(self) -> str:
        """Write it as a store takes it."""
        return json.dumps(vars(self))

    @classmethod
    def of(cls, text: str | bytes) -> Sign:
        """Read it."""
        content = json.loads(text)
        return cls(**{**content, "order": tuple(content["order"])})


class Watch:
    """A thread that says how far this process is, hears how far the others are, and speaks up when none goes on.

    Nobody is suspected while anybody moves: a process may wait long for one that has more to do. Data, forward pass,
    collectives and validations of all processes standing still for `patience` seconds is taken for a hang.

    Args:
        store: Shared by all processes.
        rank: Of this process, from 0.
        size: Number of processes.
        patience: Seconds without a move of any process.
        stalled: Called with one sentence, in the thread, once.
    """

    def __init__(self, store: Store, rank: int, size: int, patience: float, stalled: Callable[[str], None]) -> None:
        self.rank = rank
        self.patience = patience
        # Every process hears all others: fewer beats where there are many.
        self.beat = max(min(1.0, patience / 10), size / 50)
        self._store = store
        self._stalled = stalled
        self._beats = 0
        self._home = f"process {os.getpid()} on {host_name()}"
        # Written by the main thread alone, in one go.
        self._place: tuple[int, tuple[int, ...], str] = (0, (), "starting")
        self._signs: list[Sign | None] = [None] * size
        self._changed = [time.monotonic()] * size
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._run, daemon=True, name="watch over the other processes").start()

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def mark(self, order: Sequence[int], doing: str) -> None:
        """Note what the main thread begins; costs nothing, since the thread hands it on.

        Args:
            order: See `Sign`.
            doing: For people, such as `in the forward pass of batch 8`.
        """
        self._place = (self._place[0] + 1, tuple(order), doing)

    def tell(self, doing: str) -> None:
        """Say at once what the main thread does, such as that it ends."""
        self.mark(self._place[1], doing)
        self._exchange()

    def lost(self) -> str | None:
        """Say which processes have ended or give no sign of life, after waiting for one; None where all do."""
        deadline = time.monotonic() + (SILENT_BEATS + 1) * self.beat
        while not (gone := self._gone()) and time.monotonic() < deadline:
            time.sleep(self.beat / 2)
            self._exchange()
        return "; ".join(self._describe(rank) for rank in gone) or None

    def _run(self) -> None:
        while not self._ended.wait(self.beat):
            self._exchange()
            if time.monotonic() - self._moved > self.patience and not self._ended.is_set():
                self._ended.set()
                self._stalled(self._complaint())

    def _exchange(self) -> None:
        """Say the own sign, and hear the others'."""
        with self._lock:
            self._beats += 1
            own = Sign(self._beats, *self._place, self._home)
            try:
                self._store.set(f"sign-{self.rank}", own.text())
                keys = [f"sign-{rank}" for rank in range(len(self._signs))]
                found = [Sign.of(self._store.get(key)) if self._store.check([key]) else None for key in keys]
            except Exception:
                # The store went with its process, or this one is at its end: only the own moves are known.
                found = [own if rank == self.rank else sign for rank, sign in enumerate(self._signs)]
            now = time.monotonic()
            for rank, (before, after) in enumerate(zip(self._signs, found, strict=True)):
                if after != before:
                    self._changed[rank] = now
                if after is not None and (before is None or after.moves != before.moves):
                    self._moved = now
            self._signs = found

    def _gone(self) -> list[int]:
        others = [rank for rank in range(len(self._signs)) if rank != self.rank]
        return [rank for rank in others if self._silent(rank) or self._doing(rank).startswith("ended")]

    def _silent(self, rank: int) -> bool:
        return time.monotonic() - self._changed[rank] > SILENT_BEATS * self.beat

    def _doing(self, rank: int) -> str:
        sign = self._signs[rank]
        return "not heard of yet" if sign is None else sign.doing

    def _describe(self, rank: int) -> str:
        sign = self._signs[rank]
        home = f" ({sign.home})" if sign else ""
        doing = self._doing(rank)
        if doing.startswith("ended"):
            return f"rank {rank}{home} {doing}"
        return f"rank {rank}{home} " + (f"gives no sign of life, last {doing}" if self._silent(rank) else f"is {doing}")

    def _complaint(self) -> str:
        """Name who is behind, and what the others wait in."""
        orders = [sign.order if sign else () for sign in self._signs]
        behind = [rank for rank, order in enumerate(orders) if order == min(orders)]
        waiting = [rank for rank in range(len(orders)) if rank not in behind]
        named = "; ".join(map(self._describe, behind))
        wait = "; ".join(map(self._describe, waiting))
        return f"No process has gone on for {self.patience:g} seconds: {named}." + (
            f" Waiting: {wait}." if wait else ""
        )
