"""Options of the verbs, read off the source: a mistake in one is refused before seconds are spent on imports.

Only what is certain is refused. What cannot be told from the source alone - classes of other packages, what a
checkpoint says, entries of dictionaries - is left to the parser, which has the last word on everything else too.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ovsl.configuration import read_configuration
from ovsl.errors import InputError
from ovsl.help import VERBS, method_names
from ovsl.renamed import current_content
from ovsl.shipped import configuration_file
from ovsl.vocabulary import as_vocabulary

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"

CALLBACKS = {
    "execution": "Execution",
    "checkpoint": "RunCheckpoint",
    "watchdog": "Watchdog",
    "pictures": "PredictionPictures",
    "extremes": "PredictionExtremes",
    "predictions": "PredictionFiles",
}
"""Settings that every run has, and the class of `ovsl.callbacks` that they are of."""

RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "run_dir": {
        "type": str | None,
        "default": None,
        "help": "Folder of the run; default runs/<method>-<training vocabulary>. A second start there resumes.",
    },
    "print_recipe": {
        "action": "store_true",
        "help": "Print what would be trained, on what and how, in a dozen lines, and stop.",
    },
    "diagnosis": {
        "type": bool,
        "default": False,
        "help": "In `ovsl test`: count where errors come from too, for `ovsl report --diagnosis`.",
    },
    "suite": {
        "type": str | None,
        "default": None,
        "help": "In `ovsl test`, on the command line: test every dataset of a suite (`ovsl/data/suites.yaml`).",
    },
    "accept_other_data": {
        "type": bool,
        "default": False,
        "help": "Go on with a run although its training data is not what it began with.",
    },
}
"""What the verbs have beside Lightning's options: arguments of `add_argument` by name."""

_OF_THE_PARSER = ("config", "print_config", "help", "seed_everything", "trainer", "model", "data")
_OF_A_CLASS = ("class_path", "init_args", "help", "dict_kwargs")


def check_options(given: Sequence[str]) -> None:
    """Refuse options that do not exist, on the line and in the files of a command, and unknown vocabularies.

    Args:
        given: Arguments after `ovsl`.

    Raises:
        InputError: With the nearest one.
    """
    verb, *words = given or [""]
    classes = {"trainer": TRAINER, **{name: f"ovsl.callbacks.{each}" for name, each in CALLBACKS.items()}}
    classes["data"] = f"ovsl.data.{'PredictionData' if verb == 'predict' else 'SegmentationDataModule'}"
    for word, following in pairwise([*words, ""]):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        value = value if equals else following
        if name in ("-c", "--config"):
            content = _content(value)
            for group in ("model", "data"):
                _choose(classes, group, content.get(group))
            for path in _paths(content):
                _check(path, classes, verb)
        elif name.startswith("--") and " " not in word:
            path = _path(name[2:])
            if path in (("model",), ("data",), ("model", "class_path"), ("data", "class_path")):
                _choose(classes, path[0], value)
            _check(path, classes, verb)
            if path == ("data", "vocabulary"):
                _check_vocabulary(value)


def _check_vocabulary(written: str) -> None:
    try:
        words = yaml.safe_load(written)
    except yaml.YAMLError:
        return
    if isinstance(words, str):
        as_vocabulary(words)


def no_option(written: str, known: Sequence[str], owner: str = "", where: str = "") -> str:
    """Say that there is no such option, and which is near.

    Args:
        written: What was given, without the part that stands before options of a class.
        known: What there is.
        owner: Import path of the class whose option was meant; empty for none.
        where: Option that the class is the value of.
    """
    of = f" of {owner.rpartition('.')[2]}" if owner else ""
    full = f"--{where}.{written}" if owner else f"--{written}"
    return f"There is no option '{full}'{of}: {nearest(written, known)}"


def nearest(written: str, known: Sequence[str]) -> str:
    """Say what is near, else what there is."""
    # An option is also found by its last part, which is what one remembers of `trainer.max_steps`.
    tails = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(written, known, n=1, cutoff=0.7)
    close = close or [tails[each] for each in difflib.get_close_matches(written.rpartition(".")[2], tails, n=1)]
    if close:
        return f"did you mean '{close[0]}'?"
    few = [name for name in known if "." not in name]
    listed = ", ".join(few[:20]) + (", ..." if len(few) > 20 else "")
    return f"there are {listed}." if few else "see --help."


def _check(path: tuple[str, ...], classes: Mapping[str, str], verb: str) -> None:
    """Refuse an option by its parts, `init_args` left out."""
    group, *inner = path
    if verb not in VERBS:  # a tool, which has options of its own beside the model
        if group != "model":
            return
    elif not _begins(group, groups := _groups()):
        of_trainer = (f"trainer.{name}" for name in parameters(TRAINER) or ())
        raise InputError(no_option(".".join(path), [*groups, *of_trainer]))
    found = parameters(classes[group]) if group in classes else None
    if not inner or found is None or inner[0] in _OF_A_CLASS:
        return
    known, written = _options(found), inner[0]
    if inner[0] in found:
        settings = found[inner[0]]
        below = parameters(settings) if settings else None
        if len(inner) == 1 or below is None or inner[1] in (*below, *_OF_A_CLASS):
            return
        written = ".".join(inner[:2])
    if _begins(written, known):
        return
    if group in ("model", "data"):
        raise InputError(no_option(written, known, classes[group], group))
    raise InputError(no_option(".".join(path), [f"{group}.{name}" for name in known]))


def _begins(written: str, known: Iterable[str]) -> bool:
    """Whether this is an option, whole or cut short, which the parser may understand."""
    return any(name.startswith(written) for name in known)


@lru_cache
def _groups() -> tuple[str, ...]:
    """First parts of all options of the verbs."""
    of_trainer = (parameters(TRAINER, verb) for verb in VERBS)
    own = [name for found in of_trainer for name in found or {}]
    return tuple(dict.fromkeys((*_OF_THE_PARSER, *own, *CALLBACKS, *RUN_OPTIONS)))


def _options(found: Mapping[str, str]) -> list[str]:
    """Options of a class, those of the settings in it with a dot."""
    below = (f"{name}.{inner}" for name, settings in found.items() if settings for inner in parameters(settings) or {})
    return [*found, *below]


def _choose(classes: dict[str, str], group: str, value: Any) -> None:
    """Take note of the class that a command names; one of another package is the parser's business."""
    named = value.get("class_path") if isinstance(value, dict) else value
    if not isinstance(named, str):
        return
    package, _, name = named.rpartition(".")
    classes.pop(group, None)
    if package.startswith("ovsl.") or (group == "model" and not package and name in method_names()):
        classes[group] = f"{package or 'ovsl.methods'}.{name}"


def _content(name: str) -> dict[str, Any]:
    """Read a configuration file; what is wrong with the file itself is for the parser to say."""
    try:
        file = configuration_file(name)
        content = current_content(read_configuration(file), file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, InputError):
            raise
        return {}
    return content if isinstance(content, dict) else {}


def _paths(content: Mapping[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give the options that a file sets, as deep as they are looked at here."""
    for key, value in content.items():
        path = (*above, *_path(str(key)))
        if path:
            yield path
        if isinstance(value, dict) and len(path) < 3:
            yield from _paths(value, path)


def _path(name: str) -> tuple[str, ...]:
    return tuple(part.rstrip("+") for part in name.split(".") if part != "init_args")


# What the source says --------------------------------------------------------------------------------------------


class Definition(NamedTuple):
    """A class in the source of a module."""

    node: ast.ClassDef
    module: str


@lru_cache
def parameters(path: str, function: str = "__init__") -> dict[str, str] | None:
    """Read what a class takes off its source.

    Args:
        path: Import path of the class.
        function: Method whose parameters are meant.

    Returns:
        Parameters, each with the import path of the dataclass that it is annotated with, or nothing. None where the
        source does not tell.
    """
    found = _definition(path)
    if found is None:
        return None
    node = found.node
    made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == function), None)
    if made is not None:
        own = {each.arg: _dataclass(each.annotation, found) for each in (*made.args.args[1:], *made.args.kwonlyargs)}
        if made.args.kwarg is None:
            return own
        # They may go to the base alone, or nothing is known of them.
        above = f"super().{function}"
        uses = [each for each in ast.walk(made) if isinstance(each, ast.Name) and each.id == made.args.kwarg.arg]
        calls = (each for each in ast.walk(made) if isinstance(each, ast.Call) and ast.unparse(each.func) == above)
        passed = [each.value for call in calls for each in call.keywords if each.arg is None]
        if len(uses) != 1 or uses[0] not in passed:
            return None
    elif _is_dataclass(node):
        fields = (each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name))
        own = {each.target.id: _dataclass(each.annotation, found) for each in fields}  # type: ignore[union-attr]
    else:
        own = {}
    for base in node.bases:
        inherited = parameters(_full(base, found), function)
        if inherited is None:
            return None
        own = {**inherited, **own}
    return own


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(each).startswith("dataclass") for each in node.decorator_list)


def _dataclass(annotation: ast.expr | None, where: Definition) -> str:
    path = _full(annotation, where)
    found = _definition(path) if path else None
    return path if found is not None and _is_dataclass(found.node) else ""


def _full(name: ast.expr | None, where: Definition) -> str:
    """Import path of a class by its name in a module; empty for anything else."""
    return f"{where.module}.{name.id}" if isinstance(name, ast.Name) else ""


@lru_cache
def _definition(path: str) -> Definition | None:
    """Find a class of ovsl or Lightning by its import path, through modules that pass it on."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] not in ("ovsl", "lightning") or (tree := _tree(module)) is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Definition(node, module)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(f"{node.module}.{alias.name}")
    return None


@lru_cache
def _tree(module: str) -> ast.Module | None:
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, *inner)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    return None
