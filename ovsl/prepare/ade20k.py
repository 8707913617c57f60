"""ADE20K: the 150 classes of scene parsing with their instance maps, and the 847 of the full release."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ovsl.data.sources import decode_image
from ovsl.errors import InputError
from ovsl.prepare.layout import Item, Labelled, Layout, Places, index_picture, paired, picture
from ovsl.prepare.segments import describe_segments, encode_ids, ranked
from ovsl.vocabulary import instance_classes, release_ids

LARGEST_SIDE = 512
"""Short side to which the preparation of MaskFormer and FC-CLIP shrinks larger images of the full release."""

FIRST_INSTANCE = 1 << 8
"""Segments of things count from here in the map that is made, above the classes of stuff."""


@dataclass(frozen=True)
class SceneParsing(Layout):
    """`ADEChallengeData2016`: values 0 (no label) to 150, and where it is there, `annotations_instance`."""

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {"images": [f"images/{part}"], "semantic": [f"annotations/{part}"]}

    def extras(self, part: str) -> Places:
        """See `Layout`."""
        return {"panoptic": [f"annotations_instance/{part}"]}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        return paired(found["images"], {kind: folder for kind, folder in found.items() if kind != "images"})

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        semantic = self.relabel(index_picture(file), file)
        if "panoptic" not in item.labels:
            return Labelled(semantic)
        ids, classes = self._segments(semantic, item.labels["panoptic"])
        return Labelled(semantic, encode_ids(ids), describe_segments(ids, classes, self.words().things or ()))

    def _segments(self, semantic: np.ndarray, file: Path) -> tuple[np.ndarray, dict[int, int]]:
        """Paste stuff of the semantic map, a segment for each class, and things over it (Mask2Former's preparation)."""
        instances = picture(file)
        if instances.ndim != 3 or instances.shape[:2] != semantic.shape:
            raise InputError(f"'{file}' is no instance map of the size of its image: unpack the release again.")
        categories, numbers = (instances[..., channel].astype(np.int32) for channel in (0, 1))
        of_category = np.array([-1, *instance_classes(self.vocabulary)])
        if categories.max() >= len(of_category):
            raise InputError(f"'{file}' has the category {categories.max()}; {self.title} has {len(of_category) - 1}.")
        things = np.array(self.words().things)
        stuff = (semantic < len(things)) & ~things[np.minimum(semantic, len(things) - 1)]
        keys = np.where(stuff, semantic.astype(np.int32) + 1, 0)
        counted = (categories > 0) & (numbers > 0)
        keys = np.where(counted, FIRST_INSTANCE * categories + numbers, keys)
        found, ids = ranked(keys)
        classes = np.where(found < FIRST_INSTANCE, found - 1, of_category[found // FIRST_INSTANCE])
        return ids, dict(enumerate(classes.tolist()))


@dataclass(frozen=True)
class FullRelease(Layout):
    """`ADE20K_2021_17_01`: objects by `R // 10 * 256 + G` of `<image>_seg.png`; those not listed are ignored.

    Images and labels larger than `LARGEST_SIDE` are shrunk, as published figures are computed at that size.
    """

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {"images": ["images/ADE", "images"]}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`; the split is the second part of the file name."""
        images = sorted(found["images"].rglob(f"ADE_{part}_*.jpg"))
        return [Item(file.stem, file, {"semantic": file.with_name(f"{file.stem}_seg.png")}) for file in images]

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        colors = picture(file)
        if colors.ndim != 3:
            raise InputError(f"'{file}' is no picture of colours, by which {self.title} numbers objects.")
        objects = colors[..., 0].astype(np.int32) // 10 * 256 + colors[..., 1]
        height, width = objects.shape
        shrunk = None
        if min(height, width) > LARGEST_SIDE:
            if width >= height:
                size = (round(width / height * LARGEST_SIDE), LARGEST_SIDE)
            else:
                size = (LARGEST_SIDE, round(height / width * LARGEST_SIDE))
            image = np.asarray(decode_image(item.image.read_bytes(), f"image '{item.image}'", mode="RGB"))
            encoded = io.BytesIO()
            # With the same functions and settings as there.
            Image.fromarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)).save(encoded, "JPEG")
            shrunk = encoded.getvalue()
            objects = cv2.resize(objects, size, interpolation=cv2.INTER_NEAREST)
        return Labelled(self.relabel(objects, file), image=shrunk)


def ade20k_150() -> Layout:
    """Give scene parsing."""
    return SceneParsing(
        "ADE20K scene parsing",
        "ade20k_150",
        transform="reduce_zero_label",
        tops=("", "ADEChallengeData2016"),
        parts={"train": "training", "validation": "validation"},
    )


def ade20k_847() -> Layout:
    """Give the full release."""
    classes = {id: index for index, id in enumerate(release_ids("ade20k_847"))}
    return FullRelease(
        "ADE20K full (2021_17_01)",
        "ade20k_847",
        transform=classes,
        ignored=65535,
        tops=("", "ADE20K_2021_17_01"),
        parts={"train": "train", "validation": "val"},
    )
