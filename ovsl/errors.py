"""Errors that the command prints as one sentence, each with its own exit status."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import ClassVar

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system says of a disk that is full or cannot be written to."""


_LOST = re.compile(
    r"(Connection (closed by peer|reset by peer|refused)|Broken pipe|remote process exited)", re.IGNORECASE
)

EXTRAS = {"wandb": "'ovsl[wandb]'"}
"""What to install for packages that belong to an extra."""


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


def sentence(error: BaseException) -> tuple[str, int] | None:
    """Make one sentence of an error that the user or the machine has to mend.

    Args:
        error: Whatever a command ended with.

    Returns:
        The sentence and the exit status; None for errors of the program, which need their traceback.
    """
    for cause in causes(error):
        said = _sentence(cause)
        if said is not None:
            return " ".join(said[0].split()), said[1]
    return None


def _sentence(error: BaseException) -> tuple[str, int] | None:
    text, kind = str(error).strip(), type(error).__name__  # Lightning's types go by their names: it is not imported
    if isinstance(error, InputError | NotFiniteError | StoppedError):
        return text, error.status
    if kind == "SIGTERMException":
        return "Stopped by SIGTERM.", StoppedError.status
    if kind == "MisconfigurationException":
        remedy = " Set --trainer.accelerator cpu, or auto." if "backend found" in text or "ccelerator" in text else ""
        return text + remedy, InputError.status
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "ovsl":
        asked = re.search(r"pip install (?:-U )?'?([\w.-]+)", text)  # what a library says of its own extras
        name = error.name or (asked[1] if asked else text)
        install = EXTRAS.get(name, name)
        return f"The package {name!r} is not installed, which this command asks for: pip install {install}.", 2
    if kind == "UnpicklingError":
        remedy = "give a file of tensors alone, such as a state dict or safetensors"
        return f"A weights file holds Python objects, which may run code when they are read, and was not: {remedy}.", 2
    if is_lost_connection(error):
        return "Another process of this run was lost, and its own output says why; the same command goes on.", 1
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker") and "(pid" in text:
        how = text.splitlines()[0].rstrip(".")
        remedy = "lower data.num_workers, or give the machine more memory; the same command goes on."
        return f"A process that prepares data has died ({how}), often for want of memory: {remedy}", 1
    full = isinstance(error, RuntimeError) and "PytorchStreamWriter failed writing" in text
    if full or (isinstance(error, OSError) and error.errno in UNWRITABLE):
        return f"Cannot write ({text}): make room or choose another folder.", 1
    return None


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed since another process has gone."""
    kind = type(error).__name__  # torch's types go by their names: it is not imported
    return kind in ("DistBackendError", "DistNetworkError") or (
        isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None and "HTTP" not in str(error)
    )


def asked_to_wait(error: BaseException | None) -> str | None:
    """Say what to do where a server has answered HTTP 429, "too many requests", to the end; None elsewhere."""
    while error is not None:
        if getattr(getattr(error, "response", None), "status_code", None) == 429:
            return "the server asks for fewer requests (429), so go on later with the same command, or set HF_TOKEN"
        error = error.__cause__ or error.__context__
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error, and what it was raised from; a parser that exits was handling what it stands for."""
    current: BaseException | None = error
    while current is not None:
        yield current
        wrapped = current.__context__ if type(current).__name__ in ("SystemExit", "ArgumentError") else None
        current = current.__cause__ or wrapped
