"""A look through samples of a dataset: what they hold, and what is suspicious about them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovsl.data.sources import INVALID_LABEL, Row, Source, classes_of, label_table
from ovsl.errors import InputError
from ovsl.progress import progress
from ovsl.vocabulary import Vocabulary

NAMED = 3
"""Images that a remark names, of all that it is about."""

MOSTLY_IGNORED = 0.9
"""Share of pixels without a label from which a split is suspicious."""


@dataclass
class Look:
    """What samples of a split hold.

    Attributes:
        split: Name of the split.
        source: Name of its source.
        rows: Images that it has.
        seen: Images that were looked at, and could be read.
        columns: Name and type of its columns.
        sizes: Number of images of each width and height.
        pixels: Pixels of each class.
        images: Images with each class.
        ignored: Pixels without a label.
        outside: Images with a label value outside the vocabulary, by value.
        empty: Images without a labelled pixel.
        broken: What was wrong with images that cannot be read.
        same: Pairs of images with the same pixels.
        digests: Image by a hash of its pixels.
    """

    split: str
    source: str
    rows: int
    columns: dict[str, str]
    pixels: np.ndarray
    images: np.ndarray
    seen: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    ignored: int = 0
    outside: dict[int, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    same: list[tuple[str, str]] = field(default_factory=list)
    digests: dict[bytes, str] = field(default_factory=dict)

    def add(self, row: Row, table: np.ndarray) -> np.ndarray | None:
        """Count an image.

        Args:
            row: The image.
            table: From label values to classes, see `label_table`; its largest value is the ignore index.

        Returns:
            Class indices `(H, W)`, what is outside the vocabulary ignored; None for an image without a mask.
        """
        self.seen += 1
        self.sizes[row.image.shape[1], row.image.shape[0]] += 1
        digest = hashlib.blake2b(row.image.tobytes() + repr(row.image.shape).encode(), digest_size=16).digest()
        if digest in self.digests:
            self.same.append((self.digests[digest], row.id))
        self.digests.setdefault(digest, row.id)
        if row.semantic is None:
            self.broken.append(f"There is no mask of '{row.id}'.")
            return None
        values = row.semantic.astype(np.int64)
        classes = classes_of(values, table)
        for value in np.unique(values[classes == INVALID_LABEL]):
            self.outside.setdefault(int(value), []).append(row.id)
        labelled = (classes >= 0) & (classes < len(self.pixels))
        counts = np.bincount(classes[labelled], minlength=len(self.pixels))
        self.pixels += counts
        self.images += counts > 0
        self.ignored += int((~labelled).sum())
        if not labelled.any():
            self.empty.append(row.id)
        return np.where(labelled, classes, table.max())

    def suspicious(self) -> list[str]:
        """Say what is wrong or looks so, a sentence each."""
        remarks = [f"{len(self.broken)} images cannot be read: {self.broken[0]}"] if self.broken else []
        remarks += [
            f"label value {value} is outside the vocabulary, in {_some(ids)}"
            for value, ids in sorted(self.outside.items())
        ]
        if self.empty:
            remarks.append(f"not one pixel is labelled in {_some(self.empty)}")
        if self.same:
            remarks.append(f"{len(self.same)} images are there twice, such as {' and '.join(map(repr, self.same[0]))}")
        total = self.ignored + int(self.pixels.sum())
        if total and self.ignored > MOSTLY_IGNORED * total:
            remarks.append(f"{100 * self.ignored / total:.1f} % of the pixels have no label")
        return remarks

    def as_dict(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "split": self.split,
            "source": self.source,
            "rows": self.rows,
            "seen": self.seen,
            "columns": self.columns,
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.most_common()},
            "ignored_pixels": self.ignored,
            "classes": {
                name: {"pixels": int(pixels), "images": int(images)}
                for name, pixels, images in zip(vocabulary.classes, self.pixels, self.images, strict=True)
            },
            "suspicious": self.suspicious(),
        }


def look_through(
    split: str, source: Source, vocabulary: Vocabulary, samples: int | None = None, kept: int = 0
) -> tuple[Look, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Read samples of a split, in the order of a training epoch.

    Args:
        split: Its name.
        source: Where it comes from.
        vocabulary: What its labels mean.
        samples: How many; None reads all.
        kept: Images that are returned, to be drawn.

    Returns:
        What they hold; and the id, the image and the class indices of the first.

    Raises:
        InputError: The source cannot be opened.
    """
    table = label_table(source.label_transform, source.ignore_index, len(vocabulary), vocabulary.ignore_index)
    zeros = np.zeros(len(vocabulary), np.int64)
    look = Look(split, source.name, len(source), source.columns(), zeros, zeros.copy())
    pictures: list[tuple[str, np.ndarray, np.ndarray]] = []
    for index in progress(source.order(0, 0)[:samples].tolist(), f"Reading {split}"):
        try:
            row = source.row(index)
        except InputError as error:
            look.broken.append(str(error))
            continue
        classes = look.add(row, table)
        if classes is not None and len(pictures) < kept:
            pictures.append((row.id, row.image, classes))
    return look, pictures


def shared_images(looks: Sequence[Look]) -> list[str]:
    """Say which images occur in two splits."""
    remarks = []
    for place, later in enumerate(looks):
        for earlier in looks[:place]:
            if common := earlier.digests.keys() & later.digests.keys():
                names = sorted((earlier.digests[digest], later.digests[digest]) for digest in common)
                pair = f"'{names[0][0]}' of {earlier.split} is '{names[0][1]}' of {later.split}"
                remarks.append(f"{len(common)} images of {later.split} are in {earlier.split} too: {pair}")
    return remarks


def described(look: Look, vocabulary: Vocabulary, most: int = 12) -> list[str]:
    """Describe a split in lines.

    Args:
        look: What its samples hold.
        vocabulary: Its classes.
        most: Classes that are listed; of more, the most and the least frequent ones.
    """
    total = max(1, look.ignored + int(look.pixels.sum()))
    sizes = [f"{width}x{height} ({count})" for (width, height), count in look.sizes.most_common(4)]
    more = f", {len(look.sizes) - 4} more" if len(look.sizes) > 4 else ""
    present = np.flatnonzero(look.pixels)
    order = present[np.argsort(-look.pixels[present], kind="stable")]
    listed = order if len(order) <= most else np.concatenate([order[: most // 2], order[-(most // 2) :]])
    lines = [
        f"{look.split}: {look.rows} images of {look.source}, {look.seen} looked at",
        f"  columns  {', '.join(f'{name}: {_short(kind)}' for name, kind in look.columns.items()) or 'no table'}",
        f"  sizes    {', '.join(sizes)}{more}",
        f"  labels   {len(present)} of {len(vocabulary)} classes, {100 * look.ignored / total:.1f} % without a label",
    ]
    width = max((len(vocabulary.classes[index]) for index in listed), default=0)
    for place, index in enumerate(listed):
        if len(listed) < len(order) and place == most // 2:
            lines.append("           ...")
        share, images = 100 * look.pixels[index] / total, look.images[index]
        lines.append(f"           {vocabulary.classes[index]:<{width}}  {share:6.2f} %  in {images} images")
    return lines


def _short(kind: str) -> str:
    """Name a type of Arrow: a picture is a struct of bytes and path."""
    pictures: Mapping[str, str] = {"struct<bytes: binary, path: string>": "picture"}
    return pictures.get(kind, kind.partition("<")[0])


def _some(ids: Sequence[str]) -> str:
    named = ", ".join(repr(id) for id in sorted(ids)[:NAMED])
    return f"{len(ids)} images ({named}{', ...' if len(ids) > NAMED else ''})"
