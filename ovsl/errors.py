"""Errors that the command prints as one sentence, each with its own exit status."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import ClassVar


class InputError(ValueError):
    """Input that cannot be used: the message names the thing and the remedy in one sentence."""

    status: ClassVar[int] = 2
    """Exit status of the command."""


class NotFiniteError(ArithmeticError):
    """Training or evaluation met NaN or infinity and cannot go on; what was saved before is good."""

    status: ClassVar[int] = 3
    """Exit status of the command."""


class StoppedError(Exception):
    """A signal stopped the run before it was complete; the same command goes on.

    The status is that of `EX_TEMPFAIL`: a scheduler may start the command again, and a job that waits for this one to
    succeed does not start.
    """

    status: ClassVar[int] = 75
    """Exit status of the command."""


def sentence(error: BaseException) -> str | None:
    """Make one sentence of an error that the user or the machine has to mend.

    Args:
        error: Whatever a command ended with.

    Returns:
        The sentence; None for errors of the program, which need their traceback.
    """
    for cause in causes(error):
        said = _sentence(cause)
        if said is not None:
            return " ".join(said.split())
    return None


def _sentence(error: BaseException) -> str | None:
    text = str(error).strip()
    if isinstance(error, InputError | NotFiniteError | StoppedError):
        return text
    if type(error).__name__ == "SIGTERMException":  # Lightning's, not imported here
        return "Stopped by SIGTERM."
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, not imported here
        if "backend found" in text or "accelerator" in text.lower():
            return f"{text.splitlines()[0]} Set --trainer.accelerator cpu, or auto."
        return text
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "ovsl":
        asked = re.search(r"pip install (?:-U )?'?([\w.-]+)", text)  # what a library says of its own extras
        name = error.name or (asked[1] if asked else text)
        return f"The package {name!r} is not installed, which this command asks for: pip install {name}."
    full = isinstance(error, RuntimeError) and "PytorchStreamWriter failed writing" in text
    if full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return "The disk is full: free some space, or choose another --run_dir; what was written whole before is kept."
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"'{error.filename}' cannot be written or read ({error.strerror}): choose another place, or its rights."
    return None


def exit_status(error: BaseException) -> int:
    """Exit status of an error that `sentence` knows: its own, else that of a mistake in the input."""
    for cause in causes(error):
        if isinstance(cause, InputError | NotFiniteError | StoppedError):
            return cause.status
        if type(cause).__name__ == "SIGTERMException":
            return StoppedError.status
    return InputError.status


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from; a parser that exits was handling what it stands for."""
    current: BaseException | None = error
    while current is not None:
        yield current
        wrapped = current.__context__ if type(current).__name__ in ("SystemExit", "ArgumentError") else None
        current = current.__cause__ or wrapped
