"""Images and masks of your own, as files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovsl.data.fingerprint import samples_hash
from ovsl.data.image_files import IMAGE_SUFFIXES, images_below
from ovsl.data.local_files import locate
from ovsl.data.sources import LabelTransform, Row, Source, decode_image, decode_pixels, one_line
from ovsl.errors import InputError
from ovsl.vocabulary import as_vocabulary

LISTS = (".csv", ".json")
"""Suffixes of files that list images and masks."""

LIST_COLUMNS = ("image", "mask", "id", "split")
"""What a list says of an image; `id` and `split` may be left out."""

FINGERPRINTED = 64
"""Files that a fingerprint looks into."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        id: Stable name.
        image: The image.
        mask: Its mask.
        split: What a list says of it.
    """

    id: str
    image: Path
    mask: Path
    split: str | None = None


class FolderSource(Source):
    """Images and masks as files: in two folders, in one, or in a list.

    A mask has the path of its image, whatever its suffix, with `mask_suffix` after its name: `masks/a/1.png` for
    `images/a/1.jpg`, or with the suffix `_mask` and one folder `images/a/1_mask.png`.

    Args:
        images: Folder of the images, searched at any depth; or a list: a CSV file with the columns `image` and `mask`
            and, if wanted, `id` and `split`, or a JSON file with a list of such objects; paths are relative to the
            list. What is not in the current folder is looked for in the folder that `OVSL_DATA` names.
        masks: Folder of the masks; None where they lie among the images, or are in the list.
        mask_suffix: What the name of a mask has more than that of its image.
        split: Rows of a list whose `split` this is. Where nothing says so, `test` is `test_share` of the images,
            chosen by their names, and `train` all others. None takes every image.
        test_share: Share of `test`, 0..1.
        colors: For masks in colours: the colour of each label in order (`["#ff0000", ...]`), or a vocabulary (a
            shipped name or a file) with a colour for each class. None: the value of a pixel is its label.
        ignore_colors: Colours that stand for "no label".
        label_transform: What label values mean, see `label_table`.
        ignore_index: Label value that stands for "no label".
    """

    def __init__(
        self,
        images: str,
        masks: str | None = None,
        mask_suffix: str = "",
        split: str | None = None,
        test_share: float = 0.2,
        colors: list[str] | str | None = None,
        ignore_colors: list[str] | None = None,
        label_transform: LabelTransform = "identity",
        ignore_index: int = 255,
    ) -> None:
        if not 0 < test_share < 1:
            raise InputError(f"test_share is {test_share}: give a share between 0 and 1, such as 0.2.")
        self.images = images
        self.masks = masks
        self.mask_suffix = mask_suffix
        self.split = split
        self.test_share = test_share
        self.colors = colors
        self.ignore_colors = ignore_colors or []
        self.label_transform = label_transform
        self.ignore_index = ignore_index
        self.name = f"folder '{images}'" + (f" ({split})" if split else "")

    @cached_property
    def pairs(self) -> list[Pair]:
        """Images and masks in the order of the rows.

        Raises:
            InputError: There is no image, an image has no mask, or the split is empty.
        """
        given = locate(self.images)
        pairs = read_list(given) if given.suffix.lower() in LISTS else self._paired(given)
        if missing := [file for pair in pairs for file in (pair.image, pair.mask) if not file.is_file()]:
            raise InputError(
                f"{len(missing)} of the {2 * len(pairs)} files of {self.name} are missing, the first is "
                f"'{missing[0]}': check images, masks and mask_suffix."
            )
        chosen = self._of_split(pairs)
        if not chosen:
            splits = sorted({pair.split for pair in pairs if pair.split}) or ["train", "test"]
            raise InputError(f"{self.name} has no image in split '{self.split}': use one of {', '.join(splits)}.")
        return chosen

    def __len__(self) -> int:
        return len(self.pairs)

    def row(self, index: int) -> Row:
        """Read an image and its mask; see `Source`."""
        pair = self.pairs[index]
        image = decode_pixels(_bytes(pair.image), f"image '{pair.image}'", mode="RGB")
        labels = self.labels(pair.mask)
        if labels.shape != image.shape[:2]:
            raise InputError(
                f"Image and mask differ in size: '{pair.image}' is {image.shape[1]}x{image.shape[0]}, '{pair.mask}' "
                f"{labels.shape[1]}x{labels.shape[0]}; repair or remove them."
            )
        return Row(pair.id, image, labels, str(pair.image))

    def labels(self, mask: Path) -> np.ndarray:
        """Read the label values of a mask, integers `(H, W)`.

        Raises:
            InputError: It cannot be read, is a colour picture without `colors`, or has a colour that is not listed.
        """
        encoded, what = _bytes(mask), f"mask '{mask}'"
        if self.colors is not None:
            return self._labels_of_colors(np.asarray(decode_image(encoded, what).convert("RGB")), mask)
        labels = decode_pixels(encoded, what)
        if labels.ndim != 2:
            raise InputError(
                f"The mask '{mask}' is a colour picture: set colors to the colour of each class, or save label values."
            )
        return labels.astype(np.uint8) if labels.dtype == bool else labels

    def portrait(self) -> np.ndarray:
        """See `Source.portrait`; only the headers of the images are read."""
        sizes = [Image.open(pair.image).size for pair in self.pairs]
        return np.array([width <= height for width, height in sizes])

    def fingerprint(self) -> dict[str, Any]:
        """Rows, a hash of names and sizes, and one of some files."""
        files = [file for pair in self.pairs for file in (pair.image, pair.mask)]
        described = repr([(pair.id, pair.image.stat().st_size, pair.mask.stat().st_size) for pair in self.pairs])
        return {
            "rows": len(self),
            "files": hashlib.sha256(described.encode()).hexdigest(),
            "samples": samples_hash(files[:: max(1, len(files) // FINGERPRINTED)]),
        }

    def _paired(self, folder: Path) -> list[Pair]:
        mask_folder = folder if self.masks is None else locate(self.masks)
        for path in (folder, mask_folder):
            if not path.is_dir():
                raise InputError(
                    f"There is no folder '{path}': give the folders of your images and masks, or a list "
                    f"({', '.join(LISTS)})."
                )
        if self.masks is None and not self.mask_suffix:
            raise InputError(
                f"Which files of '{folder}' are masks? Set masks to their folder, or mask_suffix to the end of their "
                "names, such as _mask."
            )
        images, stored = images_below(folder), images_below(mask_folder)
        if self.masks is None:
            images = [file for file in images if not file.stem.endswith(self.mask_suffix)]
        if not images:
            raise InputError(f"There is no image ({', '.join(sorted(IMAGE_SUFFIXES))}) below '{folder}'.")
        by_name = {file.relative_to(mask_folder).with_suffix("").as_posix(): file for file in stored}
        names = [file.relative_to(folder).with_suffix("").as_posix() for file in images]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"'{folder}' has two images '{repeated[0]}' of different suffixes: rename one.")
        # A mask that is missing keeps the name that it should have.
        masks = [by_name.get(name + self.mask_suffix, mask_folder / f"{name}{self.mask_suffix}.png") for name in names]
        return [Pair(*files) for files in zip(names, images, masks, strict=True)]

    def _of_split(self, pairs: list[Pair]) -> list[Pair]:
        if self.split is None:
            return pairs
        if any(pair.split is not None for pair in pairs):
            return [pair for pair in pairs if pair.split == self.split]
        # By their names, so that the parts are the same everywhere and a new photo moves few of the others.
        by_chance = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).digest())
        tested = {pair.id for pair in by_chance[: round(self.test_share * len(pairs))]}
        parts = {"train": False, "test": True}
        return [pair for pair in pairs if (pair.id in tested) is parts.get(self.split)]

    def _labels_of_colors(self, picture: np.ndarray, mask: Path) -> np.ndarray:
        colors, values = self._color_table
        stored = picture.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        place = np.searchsorted(colors, stored).clip(max=len(colors) - 1)
        if (unknown := colors[place] != stored).any():
            y, x = np.argwhere(unknown)[0]
            raise InputError(
                f"The mask '{mask}' has the colour #{stored[y, x]:06x} at ({x}, {y}), which is none of the "
                f"{len(colors)} listed: add it to colors or ignore_colors, and save masks without smoothing (PNG)."
            )
        return values[place]

    @cached_property
    def _color_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Colours as integers 0xRRGGBB, ascending, and the label value of each, uint16."""
        listed = self.colors
        if isinstance(listed, str):
            listed = ["#{:02x}{:02x}{:02x}".format(*color) for color in as_vocabulary(listed).palette]
        numbers = [_color_number(color) for color in [*(listed or []), *self.ignore_colors]]
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise InputError(f"The colour #{twice:06x} stands for more than one label: masks cannot be read by it.")
        values = [*range(len(listed or [])), *[self.ignore_index] * len(self.ignore_colors)]
        order = np.argsort(numbers)
        return np.array(numbers)[order], np.array(values, np.uint16)[order]


def read_list(file: Path) -> list[Pair]:
    """Read a CSV or JSON list of images and masks, see `FolderSource`.

    Raises:
        InputError: The file cannot be read, or an entry lacks an image or a mask.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = list(csv.DictReader(text.splitlines())) if file.suffix.lower() == ".csv" else json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the list of images '{file}' ({one_line(error)}): check it.") from error
    if not isinstance(entries, Sequence) or not entries:
        raise InputError(f"The list '{file}' names no images: give a header 'image,mask' and a line for each.")
    pairs = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or not (entry.get("image") and entry.get("mask")):
            raise InputError(f"Entry {number} of '{file}' lacks an image or a mask: it has to have both.")
        image, mask = (file.parent / str(entry[key]) for key in ("image", "mask"))
        id = str(entry.get("id") or Path(str(entry["image"])).with_suffix("").as_posix())
        pairs.append(Pair(id, image, mask, entry.get("split") or None))
    return pairs


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read '{file}' ({one_line(error)}).") from error


def _color_number(color: str) -> int:
    try:
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
    except ValueError as error:
        raise InputError(f"{color!r} is no colour: write '#rrggbb'.") from error
    return red << 16 | green << 8 | blue
