"""What a command gives, in its files and on its line, before it is parsed: no torch, no class is looked up."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovsl.configuration import read_configuration
from ovsl.shipped import configuration_file


def given_options(args: Sequence[str], *names: str) -> dict[str, Any]:
    """Find what a command gives for some options; later files win, and the line wins over all.

    Args:
        args: Arguments after the verb.
        names: Options of the line, and top-level entries of the files.
    """
    line = _scout(args, names)
    given: dict[str, Any] = {}
    for source in (*_contents(line), vars(line)):
        given |= {name: source[name] for name in names if source.get(name) is not None}
    return given


def configuration_files(args: Sequence[str]) -> list[Path]:
    """Name the configuration files of a command, in order."""
    return list(_scout(args, ()).config)


def given_files(args: Sequence[str]) -> list[dict[str, Any]]:
    """Contents of the configuration files of a command that are readable, in order."""
    return _contents(_scout(args, ()))


def _scout(args: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("-c", "--config", action="append", default=[], type=configuration_file)
    for name in names:
        scout.add_argument(f"--{name}")
    return scout.parse_known_args(list(args))[0]


def _contents(line: argparse.Namespace) -> list[dict[str, Any]]:
    # What is wrong with a file is for the real parser to say.
    files = [read_configuration(file) for file in line.config if file.is_file()]
    return [file for file in files if isinstance(file, dict)]
