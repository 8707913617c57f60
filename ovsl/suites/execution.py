"""Running the cells of a study or a suite that are not finished."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Generic, Protocol, TypeVar

from ovsl.cluster import StopRequest
from ovsl.errors import StoppedError

OVSL = (sys.executable, "-m", "ovsl")

POLL = 0.5
"""Seconds between two looks at whether the study is to stop."""


class Runnable(Protocol):
    """What can be run: commands of `ovsl` that leave something behind which tells that they were."""

    @property
    def name(self) -> str:
        """Of the cell."""
        ...

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        ...

    def commands(self) -> list[list[str]]:
        """Give the arguments of `ovsl`, one command after the other."""
        ...


C = TypeVar("C", bound=Runnable)


@dataclass(frozen=True)
class Outcome(Generic[C]):
    """How a cell ended.

    Args:
        cell: Which.
        status: Exit status of the first of its commands that failed; 0 where none did.
        log: Where its output is; None for the terminal.
    """

    cell: C
    status: int
    log: Path | None = None


def run_cells(
    cells: Sequence[C],
    jobs: int = 1,
    logs: Path | None = None,
    say: Callable[[str], None] = print,
    ended_well: Callable[[C], None] = lambda cell: None,
) -> list[Outcome[C]]:
    """Run cells in processes of their own; one that fails does not lose the others.

    Args:
        cells: What is to be run; finished ones are left out.
        jobs: How many at a time. More than one write to files below `logs`.
        logs: Folder of the output; None for the terminal.
        say: Takes a line about each start and end.
        ended_well: Takes each cell whose commands ended with status 0.

    Returns:
        How each of those that were run ended.

    Raises:
        StoppedError: A signal stopped one of them, which stops the study; the same command goes on.
    """
    waiting = [cell for cell in cells if not cell.finished]
    say(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already, {len(waiting)} to go.")
    stopped, request = Event(), StopRequest()

    def run(numbered: tuple[int, C]) -> Outcome[C] | None:
        number, cell = numbered
        if stopped.is_set() or request.signal:
            return None
        say(f"== {number} of {len(waiting)}: {cell.name}")
        outcome = run_cell(cell, None if logs is None else logs / f"{cell.name}.log", request)
        if outcome.status == StoppedError.status:
            stopped.set()
        elif not outcome.status:
            ended_well(cell)
        elif not request.signal:
            say(f"!! {cell.name} failed with status {outcome.status}{f': {outcome.log}' if outcome.log else ''}")
        return outcome

    with request.listening(), ThreadPoolExecutor(jobs) as pool:
        outcomes = [outcome for outcome in pool.map(run, enumerate(waiting, start=1)) if outcome is not None]
    if stopped.is_set() or request.signal:
        raise StoppedError("Stopped by a signal; the same command goes on.")
    return outcomes


def run_cell(cell: C, log: Path | None, request: StopRequest) -> Outcome[C]:
    """Run the commands of one cell until one fails.

    Args:
        cell: Which.
        log: File that takes the output; None for the terminal.
        request: Of the study to stop, which is handed on.
    """
    if log is None:
        return Outcome(cell, _first_failure(cell, None, request))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return Outcome(cell, _first_failure(cell, output.fileno(), request), log)


def _first_failure(cell: Runnable, output: int | None, request: StopRequest) -> int:
    for command in cell.commands():
        process = subprocess.Popen([*OVSL, *command], stdout=output, stderr=output)
        handed_on = False
        while process.poll() is None:
            # Ctrl-C reaches the process by itself; a second one would end it before it has saved.
            if request.signal and not handed_on and request.signal != signal.SIGINT:
                process.send_signal(request.signal)
                handed_on = True
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
        if process.returncode:
            return process.returncode
    return 0
