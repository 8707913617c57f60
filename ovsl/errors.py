"""The one exception for mistakes in what the user gave."""


class InputError(ValueError):
    """Input that cannot be used: the message names the thing and the remedy in one sentence.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
