"""What classes are called in front of a text encoder, where not by the names of their vocabulary."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from ovsl.errors import InputError
from ovsl.vocabulary.vocabulary import Vocabulary

Names = tuple[str, ...]


class ClassNames:
    """Names that are shown in place of those of a vocabulary: a publication's, or a user's.

    A class may be shown by several names. The classes themselves keep theirs, in labels, tables and splits.

    Args:
        given: The name of a shipped list, see `available_class_names`, which knows the vocabularies of its publication;
            or names, `{class: name}` or `{class: [name, ...]}`, for every vocabulary that has such a class; or one of
            the two by vocabulary, `{ade20k_150: denseclip, pascal_voc_20: {tvmonitor: tv}}`; None for no other names.

    Raises:
        InputError: There is no such list, or something else than names is given.
    """

    def __init__(self, given: Mapping[str, Any] | str | None = None) -> None:
        self.anywhere: dict[str, Names] = {}
        self.by_vocabulary: dict[str, dict[str, Names]] = {}
        if isinstance(given, str):
            self.by_vocabulary = _list(given)
            return
        for key, value in (given or {}).items():
            if isinstance(value, Mapping):
                self.by_vocabulary[key] = {name: _names(name, shown) for name, shown in value.items()}
            elif isinstance(value, str) and key in Vocabulary.available():
                self.by_vocabulary[key] = _list(value).get(key, {})
            else:
                self.anywhere[key] = _names(key, value)

    def of(self, vocabulary: Vocabulary) -> dict[str, Names]:
        """Give the names of those classes of a vocabulary, or of a part of it, that are not shown by their own."""
        known = self.anywhere | self.by_vocabulary.get(vocabulary.name, {})
        return {name: known[name] for name in vocabulary.classes if name in known}

    def principal(self, vocabulary: Vocabulary) -> Names:
        """Give one name for each class of a vocabulary: the first that is shown, else its own."""
        shown = self.of(vocabulary)
        return tuple(shown.get(name, (name,))[0] for name in vocabulary.classes)


def available_class_names() -> tuple[str, ...]:
    """Return the names of the lists that are shipped, e.g. `denseclip`."""
    return tuple(sorted(_files()))


@lru_cache
def _files() -> dict[str, dict[str, Any]]:
    folder = resources.files("ovsl.vocabulary").joinpath("data", "class_names")
    return {
        file.name.removesuffix(".json"): json.loads(file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".json")
    }


def _list(name: str) -> dict[str, dict[str, Names]]:
    """Vocabulary -> class -> names of a shipped list."""
    # Checkpoints and runs may name a list as it was once called.
    current = {old: new for new, content in _files().items() for old in content.get("formerly", ())} | {
        new: new for new in _files()
    }
    if name not in current:
        close = difflib.get_close_matches(name, current, n=1)
        hint = f"did you mean '{current[close[0]]}'? Available" if close else "available"
        raise InputError(f"There are no class names '{name}': {hint}: {', '.join(available_class_names())}.")
    found = {}
    for vocabulary, entry in _files()[current[name]]["vocabularies"].items():
        names = entry["names"]
        # One list may name another whose names it shares.
        found[vocabulary] = (
            _list(names)[vocabulary] if isinstance(names, str) else {k: _names(k, v) for k, v in names.items()}
        )
    return found


def _names(name: str, shown: Any) -> Names:
    names = (shown,) if isinstance(shown, str) else tuple(shown) if isinstance(shown, list | tuple) else ()
    if not names or not all(isinstance(each, str) and each.strip() for each in names):
        raise InputError(f"The class '{name}' cannot be shown as {shown!r}: give a name, or a list of names.")
    return names
