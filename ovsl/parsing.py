"""Parsers whose mistakes are one sentence that names the nearest thing there is."""

from __future__ import annotations

import inspect
import re
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from ovsl.errors import InputError, causes
from ovsl.options import nearest, no_option

BASES = {
    "callbacks": "lightning.pytorch.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
    "model": "ovsl.methods.base.SegmentationModule",
    "optimizer": "torch.optim.Optimizer",
}
"""What classes that an option names are made of, where the parser's own message does not say."""


class OneSentence:
    """Mixin for parsers of jsonargparse: a mistake becomes an `InputError` instead of a usage of many lines."""

    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake; the parser's own attempts, which it catches, go on as they do."""
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        for cause in causes(ex) if ex is not None else ():
            if isinstance(cause, InputError):
                raise cause
        parser: ArgumentParser = getattr(ex, "subcommand_parser", None) or self  # type: ignore[assignment]
        raise InputError(explain(message, parser)) from ex


class Parser(OneSentence, ArgumentParser):
    """jsonargparse's parser, with one sentence for a mistake."""


def load_value(text: str) -> Any:
    """Load an option's value as YAML, the whole value `None` being null.

    jsonargparse parses the value of an option inside a class once, writes it out by `str`, and parses that again: so
    `null` would become the text `None`.

    >>> load_value("null"), load_value("None"), load_value("[None, 3]")
    (None, None, ['None', 3])
    """
    return None if text.strip() == "None" else _load_yaml(text)


_load_yaml = get_loader("yaml")
set_loader("yaml", load_value, exceptions=(yaml.YAMLError,))


def explain(message: str, parser: ArgumentParser) -> str:
    """Make one sentence of what jsonargparse says about a mistake.

    Args:
        message: Its message, of one line or of seventy.
        parser: The parser that gave up, of the verb where there is one.
    """
    where = _keys(message)
    if found := re.search(r"unrecognized arguments: (.*)", message):
        written = re.split(r"[ =]", found[1])[0]
        owner = _last_class(message[: found.start()])
        known = class_options(owner) if owner else _option_strings(parser)
        return no_option(written.lstrip("-"), known, owner, where)
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        owner = _last_class(message[: found.start()])
        return no_option(found[1], class_options(owner), owner, where)
    if (found := re.search(r"(?:--([\w.]+)\.help: )?Expected a dot import path string: (\S+)", message)) and (
        base := _base(found[1] or where, message[: found.start()])
    ):
        return _no_class(found[2].rstrip("."), found[1] or where, base)
    if found := re.search(r"the following arguments are required: (.*)", message):
        owner = _last_class(message[: found.start()])
        missing = ", ".join(_full_name(name, where) for name in found[1].split(", "))
        return f"{owner.rpartition('.')[2] or 'The command'} needs {missing}: give it there or in a file (-c FILE)."
    if found := re.search(r"invalid choice: '?(\S+?)'? \(choose from (.*)\)", message):
        known = re.findall(r"[\w.-]+", found[2])
        return f"There is no {found[1]!r}: {nearest(found[1], known)}"
    if found := re.search(r"in \"(?:<unicode string>|.*?)\", line (\d+)", message):
        said = " ".join(message.partition(" while ")[2].splitlines()[:2]) or message.strip().splitlines()[0]
        return f"A configuration file is not YAML at line {found[1]}: {said}."
    if found := re.search(r"Given value: NestedArg\(key='([\w.]+)', val=(.*)\)", message):
        expected = _expected(message)
        return f"--{where.partition('.')[0]}.{found[1]} cannot be {found[2]}: {expected or _bullets(message)}."
    if found := re.search(r"Given value: ([^\n]*)", message):
        return f"--{where} cannot be {found[1]!r}: {_expected(message) or _bullets(message)}."
    said = " ".join(re.sub(r'^Parser key "\w+":', "", message.strip()).split())
    return f"{said.rstrip('.')} (`{parser.prog.replace(' [options]', '')} --help`)."


def _keys(message: str) -> str:
    """Name the option that a message is about, as far as its keys do."""
    return ".".join(key for key in re.findall(r'Parser key "([\w.]+)"', message) if key != "config")


def _last_class(text: str) -> str:
    found = re.findall(r"Problem with given class_path '([\w.]+)'", text)
    return found[-1] if found else ""


def _base(key: str, before: str) -> str:
    """Name the class whose kinds an option takes; empty where it takes something else."""
    last = key.rpartition(".")[2]
    if last in BASES:
        return BASES[last]
    named = re.findall(r"(?:<class '|list\[)([\w.]+)(?:'>|\])", before.rpartition("Subtypes:")[2])
    return next((name for name in named if name.startswith("ovsl.")), "")


def _no_class(written: str, key: str, base: str) -> str:
    known = sorted(each.__name__ for each in _subclasses(_load(base)) if not inspect.isabstract(each))
    return f"There is no {written!r} for --{key}: {nearest(written, known)}"


def _expected(message: str) -> str:
    kinds = [name.rpartition(".")[2] for name in re.findall(r"Expected an? <class '([\w.]+)'>", message)]
    kinds = list(dict.fromkeys(kind for kind in kinds if kind != "NoneType"))
    literal = re.findall(r"Expected one of (?:the accepted values|) ?:?\s*(\{[^}]*\}|\([^)]*\))", message)
    return f"{' or '.join(kinds) or literal[0]} is expected" if kinds or literal else ""


def _bullets(message: str) -> str:
    """Take the first of the parser's reasons."""
    found = re.search(r"^\s*- (.*)", message, re.MULTILINE)
    return (found[1] if found else message.strip().splitlines()[-1]).strip().rstrip(".:")


def _full_name(name: str, where: str) -> str:
    name = re.sub(r"^(fit|validate|test|predict)\.", "", name)
    return f"--{where}.{name}" if where and not name.startswith(where) else f"--{name}"


def _option_strings(parser: ArgumentParser) -> list[str]:
    return [option.lstrip("-") for action in parser._actions for option in action.option_strings if option[:2] == "--"]


def class_options(owner: str) -> list[str]:
    """Options of a class, those of the settings in it with a dot."""
    parser = ArgumentParser()
    parser.add_class_arguments(_load(owner), "x", fail_untyped=False)
    names = (name.removeprefix("x.") for name, _ in parser.get_defaults().items())
    return list(dict.fromkeys(re.sub(r"\.(class_path|init_args\..*)$", "", name) for name in names))


def _load(path: str) -> Any:
    import importlib

    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _subclasses(base: type) -> set[type]:
    found: set[type] = set(base.__subclasses__())
    return found.union(*map(_subclasses, found))
