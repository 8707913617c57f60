"""What an official release is: where the files of its images lie, and what its labels mean."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ovsl.data.image_files import IMAGE_SUFFIXES
from ovsl.data.sources import INVALID_LABEL, LABEL_VALUES, LabelTransform, decode_image, label_table, one_line
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary

Places = Mapping[str, Sequence[str]]
"""Where each kind of files may lie below the folder of a release; the first that exists counts."""


@dataclass(frozen=True)
class Item:
    """The files of one image.

    Attributes:
        id: Stable name, that of the release.
        image: The image.
        labels: Its files of labels, by kind.
        annotation: What an annotation file says of it.
    """

    id: str
    image: Path
    labels: Mapping[str, Path]
    annotation: Any = None


@dataclass(frozen=True)
class Labelled:
    """What a row has beside the image.

    Attributes:
        semantic: Class indices and the `ignore_index` of the vocabulary, uint8 or uint16 `(H, W)`.
        panoptic: Encoded picture of segment ids R + 256 G + 65536 B, 0 for none; None where there is none.
        segments: Entries of `segments_info`, see `ovsl.prepare.segments`.
        instances: Entries of `instances`, likewise.
        image: Encoded image that takes the place of the file's; None keeps that as it is.
    """

    semantic: np.ndarray
    panoptic: bytes | None = None
    segments: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Release:
    """What was found in a folder.

    Attributes:
        splits: The images of each split.
        panoptic: Whether they have panoptic maps.
        instances: Whether they have the masks of mask AP in files of their own.
        notes: What was looked for and not found.
    """

    splits: dict[str, list[Item]]
    panoptic: bool = False
    instances: bool = False
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: len(items) for split, items in self.splits.items()}


@dataclass(frozen=True)
class Layout(ABC):
    """An official release: a tree of files, and the encoding of its labels.

    Args:
        title: How messages call it.
        vocabulary: Name of the vocabulary that rows are labelled by.
        transform: What the values of its label files mean, see `ovsl.data.sources.label_table`.
        ignored: Value of its label files for "no label".
        tops: Folders below the given one in which the release may lie.
        parts: Its name of each split.
    """

    title: str
    vocabulary: str
    transform: LabelTransform = "identity"
    ignored: int = 255
    tops: tuple[str, ...] = ("",)
    parts: Mapping[str, str] = field(default_factory=dict)
    remedy: ClassVar[str] = "check that it is the release that was asked for, and that the file is as it was published"

    @abstractmethod
    def places(self, part: str) -> Places:
        """Files and folders without which a split cannot be converted."""

    def extras(self, part: str) -> Places:
        """Files and folders that are used where they exist."""
        return {}

    @abstractmethod
    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """List the images of a split, in the order of their names.

        Args:
            found: Where the `places`, and those of the `extras` that exist, are.
            part: Its name of the split.
        """

    @abstractmethod
    def labelled(self, item: Item) -> Labelled:
        """Read the labels of an image.

        Raises:
            InputError: A file cannot be read, or has a label that the release does not have.
        """

    def words(self) -> Vocabulary:
        """Give the vocabulary that rows are labelled by."""
        return _shipped(self.vocabulary)

    def find(self, root: Path, splits: Sequence[str] | None = None) -> Release:
        """Look for the release in a folder, and for every file of it.

        Args:
            root: The folder, or one above it.
            splits: Splits that have to be there; None takes all that are.

        Raises:
            InputError: It is not there, or files are missing.
        """
        if not root.is_dir():
            raise InputError(f"There is no folder '{root}' to prepare {self.title} from.")
        if unknown := [split for split in splits or () if split not in self.parts]:
            raise InputError(f"{self.title} has no split '{unknown[0]}': use {', '.join(self.parts)}.")
        wanted = {split: part for split, part in self.parts.items() if splits is None or split in splits}
        top = max((root / top for top in self.tops), key=lambda top: self._present(top, wanted))
        found: dict[str, list[Item]] = {}
        notes = []
        for split, part in wanted.items():
            items, lacking = self._items(top, part)
            if items:
                found[split] = items
                notes += [f"{split} goes without {what}, which '{top}' does not have" for what in lacking]
            elif splits is not None:
                raise InputError(
                    f"{self.title} ({split}) cannot be prepared: '{top}' has no {' and no '.join(lacking)}."
                )
            else:
                notes.append(f"{split} is left out: '{top}' has no {' and no '.join(lacking)}")
        if not found:
            tops = ", ".join(f"'{root / top}'" for top in self.tops)
            raise InputError(f"'{root}' does not hold {self.title} (looked in {tops}): {'; '.join(notes)}.")
        self._check_files(root, found)
        every = [item for items in found.values() for item in items]
        panoptic = all("panoptic" in item.labels for item in every)
        instances = all(isinstance(item.annotation, dict) and "instances" in item.annotation for item in every)
        return Release(found, panoptic, instances, tuple(notes))

    def relabel(self, values: np.ndarray, file: Path) -> np.ndarray:
        """Turn label values of a file into class indices.

        Args:
            values: Integers `(H, W)`.
            file: Where they come from.

        Returns:
            uint8 or, with more than 254 classes, uint16 `(H, W)`.

        Raises:
            InputError: A value that the release does not have.
        """
        vocabulary = self.words()
        table = label_table(self.transform, self.ignored, len(vocabulary), vocabulary.ignore_index)
        known = (values >= 0) & (values < LABEL_VALUES)
        classes = table[np.where(known, values, 0)]
        if (outside := ~known | (classes == INVALID_LABEL)).any():
            y, x = np.argwhere(outside)[0]
            raise InputError(
                f"'{file}' has the label value {int(values[y, x])} at ({x}, {y}), which {self.title} does not have: "
                f"{self.remedy}."
            )
        return classes.astype(np.uint8 if vocabulary.ignore_index == 255 else np.uint16)

    def _items(self, top: Path, part: str) -> tuple[list[Item], list[str]]:
        """List the images of a split, none where something is lacking; and say what is."""
        places, missing = _search(top, self.places(part))
        extras, absent = _search(top, self.extras(part))
        items = [] if missing else self.items(places | extras, part)
        lacking = missing or (absent if items else [["image of it"]])
        return items, [" or ".join(names) for names in lacking]

    def _present(self, top: Path, wanted: Mapping[str, str]) -> int:
        """Count the places that exist below a folder."""
        return sum(len(_search(top, self.places(part))[0]) for part in wanted.values())

    def _check_files(self, root: Path, found: Mapping[str, Sequence[Item]]) -> None:
        items = [item for of_split in found.values() for item in of_split]
        files = dict.fromkeys(file for item in items for file in (item.image, *item.labels.values()))
        if missing := [file for file in files if not file.is_file()]:
            raise InputError(
                f"{len(missing)} of the {len(files)} files of {self.title} are missing in '{root}', the first is "
                f"'{missing[0]}': unpack the release again."
            )


@lru_cache
def _shipped(name: str) -> Vocabulary:
    return Vocabulary.load(name)


def values_of(classes: Mapping[int, int], count: int, ignore_index: int, other: int | None = None) -> list[int]:
    """Make a label transform for values 0..`count` - 1; larger ones are labels that a release does not have.

    Args:
        classes: Class index of a value.
        count: Number of values.
        ignore_index: Stands for "no label".
        other: What values that are not listed become; None for no label.
    """
    return [classes.get(value, ignore_index if other is None else other) for value in range(count)]


def picture(file: Path) -> np.ndarray:
    """Read a picture of labels as it is stored: indices of a palette picture, not its colours.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return np.asarray(decode_image(file.read_bytes(), f"label file '{file}'"))
    except (InputError, FileNotFoundError) as error:
        raise InputError(f"Cannot read '{file}' ({one_line(error)}): unpack the release again.") from error


def image_size(encoded: bytes, file: Path) -> tuple[int, int]:
    """Width and height of an encoded image, by its header.

    Raises:
        InputError: It is no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size
    except Exception as error:  # Pillow raises many types on broken files
        raise InputError(f"'{file}' is no image that can be opened: unpack the release again.") from error


def index_picture(file: Path) -> np.ndarray:
    """Read a picture with one label value a pixel, integers `(H, W)`.

    Raises:
        InputError: It cannot be read, or is a picture of colours.
    """
    values = picture(file)
    if values.ndim != 2:
        raise InputError(f"'{file}' is a colour picture, not one of label values: take the label files of the release.")
    return values


def paired(
    images: Path, labels: Mapping[str, Path], image_end: str = "", label_ends: Mapping[str, str] | None = None
) -> list[Item]:
    """List images and the label files of the same names, at any depth.

    What exists of one kind alone is listed with the files that it should have.

    Args:
        images: Folder of the images.
        labels: Folder of each kind of label files.
        image_end: How the names of images end, before the suffix.
        label_ends: How those of label files do, suffix included; `.png` where it says nothing.
    """
    ends = {kind: (label_ends or {}).get(kind, ".png") for kind in labels}
    by_id = {
        file.relative_to(images).with_suffix("").as_posix().removesuffix(image_end): file
        for file in images.rglob(f"*{image_end}.*")
        if file.suffix.lower() in IMAGE_SUFFIXES
    }
    ids = set(by_id).union(
        *(
            {f.relative_to(folder).as_posix().removesuffix(ends[kind]) for f in folder.rglob(f"*{ends[kind]}")}
            for kind, folder in labels.items()
        )
    )
    suffix = next(iter(by_id.values())).suffix if by_id else ".jpg"
    return [
        Item(
            Path(id).name,
            by_id.get(id, images / f"{id}{image_end}{suffix}"),
            {kind: folder / f"{id}{ends[kind]}" for kind, folder in labels.items()},
        )
        for id in sorted(ids)
    ]


def listed(names: Path) -> list[str]:
    """Read a list of image names, one a line; what follows a name in its line is left out."""
    return [line.split()[0] for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]


def _search(top: Path, places: Places) -> tuple[dict[str, Path], list[Sequence[str]]]:
    """Look for places below a folder: where they are, and the names of those that are nowhere."""
    there = {kind: [top / name for name in names if (top / name).exists()] for kind, names in places.items()}
    missing = [names for kind, names in places.items() if not there[kind]]
    return {kind: paths[0] for kind, paths in there.items() if paths}, missing
