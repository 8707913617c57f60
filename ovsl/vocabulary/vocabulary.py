"""The `Vocabulary`: an ordered list of classes and what is known about each."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from ovsl.errors import InputError
from ovsl.vocabulary.palette import generate_palette

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of classes; label `k` in a mask means `classes[k]`.

    Immutable and hashable, so that text embeddings can be cached per vocabulary. Instances come from `load`,
    `from_words` or `from_dict`.

    Args:
        name: Name under which results are reported.
        classes: Principal name of each class, distinct, spelled as in the dataset's official list.
        synonyms: For each class the names that stand for it in prompts. The published lists sometimes leave out the
            official name (`building-other` has the synonyms `building` and `buildings`), and so do these.
        seen: Whether each class counts as seen in training; `None` when nothing is known, which is read as all seen.
        things: Whether each class is a thing (countable) and not stuff; `None` when the list does not say.
        palette: RGB colour of each class, each value in 0..255.
        ignore_index: Label of pixels that are neither trained on nor evaluated.

    Raises:
        InputError: If there are no classes, names repeat, or the fields differ in length.
    """

    name: str
    classes: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    seen: tuple[bool, ...] | None
    things: tuple[bool, ...] | None
    palette: tuple[Color, ...]
    ignore_index: int

    def __post_init__(self) -> None:
        if not self.classes:
            raise InputError(f"the vocabulary '{self.name}' is empty: give at least one class.")
        repeated = [name for name, count in Counter(self.classes).items() if count > 1]
        if repeated:
            raise InputError(f"the vocabulary '{self.name}' has the class '{repeated[0]}' more than once: keep one.")
        for field in ("synonyms", "seen", "things", "palette"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.classes):
                raise InputError(
                    f"the vocabulary '{self.name}' has {len(self.classes)} classes but {len(value)} {field}: "
                    "give one entry for each class."
                )
        for name, words in zip(self.classes, self.synonyms, strict=True):
            if not words or not all(word.strip() for word in words):
                raise InputError(
                    f"the class '{name}' of '{self.name}' has an empty synonym: give it at least one word."
                )
        if 0 <= self.ignore_index < len(self.classes):
            raise InputError(
                f"the ignore index {self.ignore_index} of '{self.name}' is also the label of "
                f"'{self.classes[self.ignore_index]}': choose one outside 0..{len(self.classes) - 1}."
            )

    def __len__(self) -> int:
        return len(self.classes)

    # ---- where vocabularies come from

    @staticmethod
    def available() -> tuple[str, ...]:
        """Names that `load` knows, e.g. `ade20k_150`, `coco_stuff_171`, `pascal_voc_20`."""
        folder = resources.files("ovsl.vocabulary").joinpath("data")
        stems = (entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
        return tuple(sorted(stem for stem in stems if stem != "templates"))

    @staticmethod
    def available_splits(name: str) -> tuple[str, ...]:
        """Names of the zero-shot splits and few-shot folds of a vocabulary, e.g. `zero_shot_156_15`.

        Raises:
            InputError: If there is no such vocabulary.
        """
        return tuple(sorted(_unseen_by_split(name)))

    @classmethod
    def load(cls, name: str, split: str | None = None) -> Vocabulary:
        """Load one of the vocabularies that come with the package.

        The ignore index follows the common schema of masks, 255 or, above 254 classes, 65535, also where the
        original release uses another value (Mapillary Vistas: 65).

        Args:
            name: One of `Vocabulary.available()`.
            split: A zero-shot split (`zero_shot_15_5`) or few-shot fold (`pascal_5i_fold0`; its held-out classes are
                unseen, all others seen), see `available_splits`. Without it nothing is said about seen classes.

        Raises:
            InputError: If there is no such vocabulary or split.
        """
        seen = None
        classes = _read(name)["classes"]
        if split is not None:
            splits = _unseen_by_split(name)
            if split not in splits:
                available = f"available: {', '.join(sorted(splits))}" if splits else "it has none; leave the split out"
                raise InputError(f"the vocabulary '{name}' has no split '{split}': {available}.")
            seen = tuple(index not in splits[split] for index in range(len(classes)))
        has_things = all("is_thing" in entry for entry in classes)
        has_colors = all("color" in entry for entry in classes)
        return cls(
            name=name,
            # ADE20K's official list has a trailing blank in "window ", which no reader means.
            classes=tuple(entry["name"].strip() for entry in classes),
            synonyms=tuple(tuple(entry["synonyms"]) for entry in classes),
            seen=seen,
            things=tuple(bool(entry["is_thing"]) for entry in classes) if has_things else None,
            palette=_colors(entry["color"] for entry in classes) if has_colors else generate_palette(len(classes)),
            ignore_index=default_ignore_index(len(classes)),
        )

    @classmethod
    def from_words(cls, words: Sequence[str], name: str = "words") -> Vocabulary:
        """Make a vocabulary of free words.

        Args:
            words: One entry for each class; commas separate synonyms, the first is the principal name
                (`["cat", "sofa, couch"]`).
            name: Name under which results are reported.

        Raises:
            InputError: If there are no words, one is empty, or one occurs twice (also across classes).
        """
        if isinstance(words, str):
            raise InputError(f"the vocabulary is one string, '{words}': give a list with one entry for each class.")
        if not words:
            raise InputError("the vocabulary is empty: give at least one word.")
        synonyms = tuple(tuple(" ".join(word.split()) for word in entry.split(",")) for entry in words)
        for entry, group in zip(words, synonyms, strict=True):
            if not all(group):
                raise InputError(f"the vocabulary entry '{entry}' has an empty word: remove it or its comma.")
        repeated = [word for word, n in Counter(_key(word) for group in synonyms for word in group).items() if n > 1]
        if repeated:
            raise InputError(f"the word '{repeated[0]}' occurs more than once in the vocabulary: keep it in one class.")
        return cls(
            name=name,
            classes=tuple(group[0] for group in synonyms),
            synonyms=synonyms,
            seen=None,
            things=None,
            palette=generate_palette(len(synonyms)),
            ignore_index=default_ignore_index(len(synonyms)),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from what `to_dict` gave (lists may stand for tuples, as after JSON or YAML)."""
        seen, things = values["seen"], values["things"]
        return cls(
            name=values["name"],
            classes=tuple(values["classes"]),
            synonyms=tuple(tuple(group) for group in values["synonyms"]),
            seen=None if seen is None else tuple(bool(value) for value in seen),
            things=None if things is None else tuple(bool(value) for value in things),
            palette=_colors(values["palette"]),
            ignore_index=int(values["ignore_index"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings, numbers and `None`: fit for checkpoints that load with `weights_only=True`."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "synonyms": [list(group) for group in self.synonyms],
            "seen": None if self.seen is None else list(self.seen),
            "things": None if self.things is None else list(self.things),
            "palette": [list(color) for color in self.palette],
            "ignore_index": self.ignore_index,
        }

    # ---- seen and unseen

    @property
    def seen_indices(self) -> list[int]:
        """Indices of the seen classes, ascending; all of them when `seen` is `None`."""
        return [index for index in range(len(self)) if self.seen is None or self.seen[index]]

    @property
    def unseen_indices(self) -> list[int]:
        """Indices of the unseen classes, ascending; none when `seen` is `None`."""
        return [index for index in range(len(self)) if self.seen is not None and not self.seen[index]]

    def with_seen_from(self, training: Vocabulary, own_names: bool = False) -> Vocabulary:
        """Mark as seen every class that shares a synonym with a seen class of the training vocabulary.

        The overlap rule of FC-CLIP (arXiv:2308.02487), where it steers the ensembling. Its synonyms of a class often
        lack the class's own name ("road" of PASCAL Context, "house" of ADE20K); what is reported as unseen in
        cross-dataset evaluation compares that too. Letter case and spacing are not compared.

        Args:
            training: What the method was trained on. Only its seen classes count.
            own_names: Whether the names of the classes themselves count on both sides, beside their synonyms.
        """
        known = {_key(word) for index in training.seen_indices for word in training._names(index, own_names)}
        seen = (any(_key(word) in known for word in self._names(index, own_names)) for index in range(len(self)))
        return replace(self, seen=tuple(seen))

    def _names(self, index: int, own_name: bool) -> tuple[str, ...]:
        return (self.classes[index], *self.synonyms[index]) if own_name else self.synonyms[index]

    def with_unseen(self, unseen: Collection[int]) -> Vocabulary:
        """Mark classes as unseen, and all others as seen.

        Args:
            unseen: Their indices.
        """
        return replace(self, seen=tuple(index not in unseen for index in range(len(self))))

    # ---- parts

    def index(self, name: str) -> int:
        """Label of a class, found by its principal name or else by a synonym that only one class has.

        Raises:
            InputError: If no class, or more than one, goes by that name.
        """
        key = _key(name)
        found = [index for index, word in enumerate(self.classes) if _key(word) == key]
        if not found:
            found = [index for index, group in enumerate(self.synonyms) if key in map(_key, group)]
        if len(found) > 1:
            owners = ", ".join(f"'{self.classes[index]}'" for index in found)
            raise InputError(f"'{name}' is a synonym of several classes of '{self.name}' ({owners}): use one of these.")
        if not found:
            words = {_key(word): word for group in (*self.synonyms, self.classes) for word in group}
            close = [words[match] for match in difflib.get_close_matches(key, words)]
            hint = (
                f"did you mean {_either(close)}?" if close else f"its classes begin with {_either(self.classes[:5])}."
            )
            raise InputError(f"the vocabulary '{self.name}' has no class '{name}': {hint}")
        return found[0]

    def subset(self, indices: Sequence[int], name: str | None = None) -> Vocabulary:
        """Choose classes, in the order given; label `i` of the result is label `indices[i]` of this vocabulary.

        Args:
            indices: Classes to keep, in 0..`len(self)` - 1.
            name: Its name; by default that of this vocabulary.

        Raises:
            InputError: If an index is out of range, repeats, or none is given.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise InputError(f"'{self.name}' has no class {index}: indices go from 0 to {len(self) - 1}.")
        return replace(
            self,
            name=self.name if name is None else name,
            classes=tuple(self.classes[index] for index in indices),
            synonyms=tuple(self.synonyms[index] for index in indices),
            seen=None if self.seen is None else tuple(self.seen[index] for index in indices),
            things=None if self.things is None else tuple(self.things[index] for index in indices),
            palette=tuple(self.palette[index] for index in indices),
        )


def _key(word: str) -> str:
    """Reduce a name to what its spellings have in common."""
    return " ".join(word.split()).casefold()


def _either(words: Sequence[str]) -> str:
    return " or ".join(f"'{word}'" for word in words)


def default_ignore_index(num_classes: int) -> int:
    """Label of pixels that do not count: masks have 8 bits as long as the classes and one such value fit."""
    return 255 if num_classes <= 254 else 65535


def _colors(values: Iterable[Sequence[int]]) -> tuple[Color, ...]:
    return tuple((int(red), int(green), int(blue)) for red, green, blue in values)


@lru_cache
def _read(name: str) -> dict[str, Any]:
    available = Vocabulary.available()
    if name not in available:
        close = difflib.get_close_matches(name, available)
        hint = f"did you mean {_either(close)}?" if close else f"available: {', '.join(available)}."
        raise InputError(f"unknown vocabulary '{name}': {hint}")
    text = resources.files("ovsl.vocabulary").joinpath("data", f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def release_ids(name: str) -> tuple[int, ...]:
    """Give the number that each class of a shipped vocabulary has in the files of its release, in label order.

    Raises:
        InputError: There is no such vocabulary, or its release has no numbers of its own.
    """
    ids = tuple(entry.get("dataset_id") for entry in _read(name)["classes"])
    if None in ids:
        raise InputError(f"the vocabulary '{name}' does not say how its release numbers the classes.")
    return ids


def instance_classes(name: str) -> tuple[int, ...]:
    """Give the class that categories 1, 2, ... of the separate instance maps of a release stand for (ADE20K).

    Raises:
        InputError: There is no such vocabulary, or its release has no instance maps with categories of their own.
    """
    classes = _read(name).get("instance100_to_index")
    if classes is None:
        raise InputError(f"the vocabulary '{name}' has no categories of instance maps.")
    return tuple(classes)


def _unseen_by_split(name: str) -> dict[str, frozenset[int]]:
    """Unseen classes of every split that divides seen from unseen; other groupings (things and stuff) are left out."""
    unseen: dict[str, frozenset[int]] = {}
    for split, parts in _read(name).get("splits", {}).items():
        if "unseen" in parts:
            unseen[split] = frozenset(parts["unseen"])
        for part, indices in parts.items():
            if part.startswith("fold"):
                unseen[f"{split}_{part}"] = frozenset(indices)
    return unseen
