"""Errors that the command prints as one sentence, each with its own exit status."""

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
