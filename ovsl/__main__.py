"""The `ovsl` command as far as it needs no torch: help, version, verbs and tools by name, one-sentence errors.

`ovsl report`, help and mistakes in the first words answer at once; the verbs import what they need, see `ovsl.cli`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovsl import __version__
from ovsl.errors import InputError, sentence
from ovsl.help import VERBS, check_method, verb_help
from ovsl.shipped import nearest_beside

TOOLS = {
    "demo": "open a page that labels photos with any words",
    "completion": "print a script that completes ovsl's words in a shell",
    "convert": "turn a checkpoint of an official release into one of ovsl",
    "data": "look through a dataset for what is wrong with it",
    "export": "write a trained method with fixed words as ONNX",
    "prepare": "make Parquet files of an official release, or of a folder of your own",
    "profile": "print parameters, multiply-adds, latency and memory of a method",
    "report": "print one table of all results, and draw them",
    "study": "run the cells of a study, here or on a cluster",
    "submit": "run a command as a job of a cluster",
}
"""The small commands: modules of `ovsl.tools`, imported when they are asked for."""

LIGHT = ("data", "prepare", "report", "study", "submit")
"""Tools that build no model; all but `data` and `prepare` import no torch."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        args: Arguments after `ovsl`; those of the process when None.

    Returns:
        Exit status: 0; 2 after a mistake in the input, 3 after a NaN, 75 after a signal, each with one line that says
        so; 1 where the disk is full or cannot be written to; 130 after Ctrl-C before anything began.
    """
    try:
        status = answer(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_has_gone():
            raise
        return 141  # what a shell says of a program that SIGPIPE ended
    except KeyboardInterrupt:  # a training that has begun answers it by itself, and saves
        print("ovsl: Stopped by Ctrl-C; the same command goes on.", file=sys.stderr)
        return 130
    return status


def answer(given: Sequence[str]) -> int:
    """Do what the arguments say; see `main`."""
    first = given[0] if given else "--help"
    if first in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if first in VERBS and given[1:] in (["-h"], ["--help"]):
        print(verb_help(first))
        return 0
    if first == "--version":
        print(f"ovsl {__version__}")
        return 0
    try:
        if first in TOOLS:
            if first not in LIGHT:
                check_written(given)
            status = importlib.import_module(f"ovsl.tools.{first}").main(given[1:])
            return status if isinstance(status, int) else 0
        elif first in VERBS or first.startswith("-"):
            if given[1:] == ["--help", "all"]:
                given = given[:-1]
            check_files(given)
            check_method(given)
            check_written(given)
            if first == "test" and names_suite(given):
                return int(importlib.import_module("ovsl.tools.suite").main(given[1:]))
            from ovsl.cli import run_lightning  # torch and Lightning, seconds of imports

            run_lightning(given)
        else:
            raise InputError(unknown_verb(first))
    except (Exception, SystemExit) as error:
        if (said := sentence(error)) is None:
            raise
        print(f"ovsl: {said[0]}", file=sys.stderr)
        return said[1]
    return 0


def reader_has_gone() -> bool:
    """Whether nobody reads the output any more, as in `ovsl report runs | head`; then the rest of it is dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def usage() -> str:
    """Write what `ovsl --help` prints."""
    lines = ["ovsl: open-vocabulary semantic segmentation", "", "usage: ovsl VERB [-c FILE ...] [--option VALUE ...]"]
    for title, commands in (("verbs", VERBS), ("tools", TOOLS)):
        lines += ["", f"{title}:", *(f"  {name:<10} {text}" for name, text in commands.items())]
    lines += [
        "",
        "`ovsl VERB --help` lists options, `ovsl fit --model.help ZegCLIP` those of a method, `ovsl --version` the",
        "version, `ovsl completion bash` a script for the shell. A file is a path, or a shipped configuration by name,",
        "such as ovsl:methods/zegclip or ovsl:data/toy.",
    ]
    return "\n".join(lines)


def unknown_verb(name: str) -> str:
    """Say that there is no such verb, and which is near."""
    close = difflib.get_close_matches(name, [*VERBS, *TOOLS], n=1)
    return f"There is no 'ovsl {name}': " + (
        f"did you mean '{close[0]}'?" if close else f"the verbs are {', '.join(VERBS)}, the tools {', '.join(TOOLS)}."
    )


def names_suite(given: Sequence[str]) -> bool:
    """Whether a command tests a suite, and does not only ask for help or the configuration."""
    words = {word.partition("=")[0] for word in given}
    return "--suite" in words and not words & {"-h", "--help", "--print_config", "--print_recipe"}


def check_written(given: Sequence[str]) -> None:
    """Refuse options that there are no longer, or never were, before seconds are spent on imports."""
    from ovsl.options import check_options  # YAML and numpy, a tenth of a second
    from ovsl.renamed import check_command

    check_command(given)
    check_options(given)


def check_files(given: Sequence[str]) -> None:
    """Refuse a configuration file that does not exist before seconds are spent on imports.

    Raises:
        InputError: With its name, and files near it that do exist.
    """
    for name in _named_files(given):
        path = Path(name)
        if not name.startswith("ovsl:") and "\n" not in name and not path.is_file():
            near = nearest_beside(path)
            hint = f"did you mean {near}?" if near else "check the path."
            raise InputError(f"There is no configuration file '{name}': {hint}")


def _named_files(given: Sequence[str]) -> Iterator[str]:
    for position, word in enumerate(given):
        if word in ("-c", "--config") and position + 1 < len(given):
            yield given[position + 1]
        elif word.startswith("--config="):
            yield word.partition("=")[2]


if __name__ == "__main__":
    raise SystemExit(main())
