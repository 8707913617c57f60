"""Vocabularies of your own: words, or a text, JSON or CSV file, wherever the name of a shipped vocabulary is taken."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovsl.errors import InputError
from ovsl.vocabulary.palette import generate_palette
from ovsl.vocabulary.vocabulary import Color, Vocabulary, default_ignore_index

SUFFIXES = (".csv", ".json", ".txt")
ENTRY_KEYS = ("name", "synonyms", "is_thing", "color", "seen")
"""What a file says of a class: all but the name may be left out, but then for every class."""


def as_vocabulary(words: Vocabulary | str | Sequence[str], split: str | None = None) -> Vocabulary:
    """Give the vocabulary that is meant by words, by a name, or by a file.

    - A list of words: one entry for each class, commas separate synonyms.
    - A shipped name, see `Vocabulary.available`.
    - A text file: one line for each class, commas separate synonyms; lines that begin with `#` do not count.
    - A CSV file with a header: `name`, and any of `synonyms` (separated by commas, so the cell is quoted), `is_thing`
      (true, false), `color` (`#rrggbb`) and `seen` (true, false: whether training may use the labels of the class).
    - A JSON file: a list of words as above, or `{"classes": [...], "splits": {...}}`, each class an object with the
      names of the CSV columns (`synonyms` a list), each split `{"unseen": [names or indices]}`: the form of the
      shipped files.

    In files of your own the name of a class always is one of its names in prompts, before the synonyms.

    Args:
        words: What a user wrote, or a vocabulary, which is returned as it is.
        split: Zero-shot split of a shipped vocabulary or of a JSON file.

    Raises:
        InputError: No such name or file, a file that cannot be read, or a split that it does not have.
    """
    if isinstance(words, Vocabulary):
        return words
    if not isinstance(words, str):
        vocabulary = Vocabulary.from_words(words)
    elif words in Vocabulary.available():
        return Vocabulary.load(words, split)
    elif Path(words).suffix.lower() in SUFFIXES:
        return read_vocabulary(Path(words), split)
    else:
        raise InputError(unknown_name(words))
    if split is not None:
        raise InputError(f"A list of words has no split '{split}': leave it out, or give a JSON file with splits.")
    return vocabulary


def vocabulary_name(words: str | Sequence[str]) -> str:
    """Give the name under which `as_vocabulary` reports words, without reading a file."""
    if not isinstance(words, str):
        return "words"
    return Path(words).stem if Path(words).suffix.lower() in SUFFIXES else words


def unknown_name(name: str) -> str:
    """Say what is wrong with a string that is no vocabulary, and what can be given."""
    close = difflib.get_close_matches(name, Vocabulary.available(), n=2)
    if "," in name:
        hint = f"write words as a list, '{json.dumps([word.strip() for word in name.split(',')])}'"
    elif close:
        hint = f"did you mean {' or '.join(map(repr, close))}"
    else:
        hint = f"shipped are {', '.join(Vocabulary.available())}"
    return f"unknown vocabulary '{name}': {hint}? Else give a list of words or a {', '.join(SUFFIXES)} file."


def read_vocabulary(path: Path, split: str | None = None) -> Vocabulary:
    """Read a vocabulary from a file, see `as_vocabulary`.

    Args:
        path: A `.txt`, `.csv` or `.json` file, UTF-8.
        split: One of its splits; None takes the marks `seen` of its classes, if it has any.

    Raises:
        InputError: There is no such file or split, or the file is not of one of the forms.
    """
    path = path.expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the vocabulary '{path}' ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the vocabulary '{path}' is not UTF-8 text: save it as UTF-8.") from error
    suffix = path.suffix.lower()
    content: Any
    if suffix == ".txt":
        content = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    elif suffix == ".csv":
        content = {"classes": _csv_entries(text, path)}
    else:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InputError(f"the vocabulary '{path}' is not JSON ({error}): mend it there.") from error
    entries = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(f"the vocabulary '{path}' lists no classes: give a list, or an object with 'classes'.")
    try:
        if all(isinstance(entry, str) for entry in entries):
            vocabulary = Vocabulary.from_words(entries, path.stem)
        else:
            vocabulary = _from_entries(entries, path)
    except InputError as error:
        raise InputError(f"in the vocabulary file '{path}': {error}") from error
    if split is None:
        return vocabulary
    splits = content.get("splits") or {} if isinstance(content, dict) else {}
    return vocabulary.with_unseen(_unseen(splits, split, vocabulary, path))


def _csv_entries(text: str, path: Path) -> list[dict[str, Any]]:
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = [(name or "").strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    _check_keys(columns, f"column of '{path}'")
    entries = []
    for row in rows:
        if None in row:  # more cells than columns
            raise InputError(
                f"line {rows.line_num} of '{path}' has more cells than the header: put synonyms in quotes."
            )
        entry: dict[str, Any] = {name: value.strip() for name, value in row.items() if value and value.strip()}
        if "synonyms" in entry:
            entry["synonyms"] = [word.strip() for word in entry["synonyms"].split(",")]
        for flag in ("is_thing", "seen"):
            if flag in entry:
                entry[flag] = _flag(entry[flag], f"line {rows.line_num} of '{path}', column {flag}")
        entries.append(entry)
    return entries


def _flag(text: str, where: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise InputError(f"{where}: '{text}' is neither true nor false.")
    return values[text.lower()]


def _from_entries(entries: Sequence[Any], path: Path) -> Vocabulary:
    """Make a vocabulary of objects, each with the keys `ENTRY_KEYS`; the shipped files' further keys are known too."""
    if not entries:
        raise InputError("it is empty: give at least one class.")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise InputError(f"class {number} has no name: give each class an entry with 'name'.")
        _check_keys(entry, f"key of class '{entry['name']}'")
    every = {key: [entry.get(key) for entry in entries] for key in ENTRY_KEYS}
    for key in ("is_thing", "color", "seen"):
        lacking = [name for name, value in zip(every["name"], every[key], strict=True) if value is None]
        if 0 < len(lacking) < len(entries):
            raise InputError(f"'{lacking[0]}' has no '{key}', but others have one: give it to all classes or to none.")
    names = tuple(_words([entry["name"]])[0] for entry in entries)
    synonyms = tuple(  # the name once, and first
        tuple(dict.fromkeys((name, *_words(entry.get("synonyms") or ()))))
        for name, entry in zip(names, entries, strict=True)
    )
    flags = {
        key: None if every[key][0] is None else tuple(bool(value) for value in every[key])
        for key in ("is_thing", "seen")
    }
    return Vocabulary(
        name=path.stem,
        classes=names,
        synonyms=synonyms,
        seen=flags["seen"],
        things=flags["is_thing"],
        palette=tuple(map(_color, every["color"])) if every["color"][0] else generate_palette(len(names)),
        ignore_index=default_ignore_index(len(names)),
    )


def _words(names: Any) -> list[str]:
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"synonyms have to be a list of words, not {names!r}.")
    return [" ".join(name.split()) for name in names]


def _check_keys(keys: Iterable[str], what: str) -> None:
    known = (*ENTRY_KEYS, "index", "dataset_id", "dataset_name", "mmseg_name", "supercategory")
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, ENTRY_KEYS, n=1)
            hint = f"did you mean '{close[0]}'" if close else f"there are {', '.join(ENTRY_KEYS)}"
            raise InputError(f"unknown {what}: '{key}'; {hint}?")


def _color(value: Any) -> Color:
    try:
        if isinstance(value, str):
            red, green, blue = bytes.fromhex(value.removeprefix("#"))
        else:
            red, green, blue = bytes(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{value!r} is no colour: write '#rrggbb' or three numbers in 0..255.") from error
    return red, green, blue


def _unseen(splits: Mapping[str, Any], split: str, vocabulary: Vocabulary, path: Path) -> set[int]:
    if split not in splits:
        there = f"it has {', '.join(splits)}" if splits else "it has none; leave the split out"
        raise InputError(f"the vocabulary '{path}' has no split '{split}': {there}.")
    parts = splits[split]
    if not isinstance(parts, Mapping) or not isinstance(parts.get("unseen"), list):
        raise InputError(f"the split '{split}' of '{path}' has no list 'unseen': name its unseen classes there.")
    unseen = {vocabulary.index(entry) if isinstance(entry, str) else int(entry) for entry in parts["unseen"]}
    if not unseen <= set(range(len(vocabulary))):
        raise InputError(f"the split '{split}' of '{path}' names a class beyond {len(vocabulary) - 1}: mend it there.")
    return unseen
