"""PASCAL VOC 2012 with its augmented training set, and PASCAL Context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ovsl.data.sources import one_line
from ovsl.errors import InputError
from ovsl.prepare.layout import Item, Labelled, Layout, Places, index_picture, listed, values_of
from ovsl.vocabulary import release_ids

CONTEXT_LABELS = 460
"""Label maps of PASCAL Context hold 0 (no label) to 459."""


@dataclass(frozen=True)
class VOC(Layout):
    """`VOC2012`: palette pictures of 0 (background) to 20, 255 on borders.

    The augmented training set is `SegmentationClassAug`, made of SBD's; without a list it is all of it that is not in
    the validation set.
    """

    def places(self, part: str) -> Places:
        """See `Layout`."""
        if part == "aug":
            return {
                "images": ["JPEGImages"],
                "semantic": ["SegmentationClassAug"],
                "validation": ["ImageSets/Segmentation/val.txt"],
            }
        return {
            "images": ["JPEGImages"],
            "semantic": ["SegmentationClass"],
            "list": [f"ImageSets/Segmentation/{part}.txt"],
        }

    def extras(self, part: str) -> Places:
        """See `Layout`."""
        names = ("ImageSets/Segmentation/train_aug.txt", "ImageSets/Segmentation/trainaug.txt")
        return {"list": [*names, "ImageSets/SegmentationAug/train_aug.txt"]} if part == "aug" else {}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        if "list" in found:
            # Some lists name files, `/JPEGImages/2007_000032.jpg`.
            names = [Path(name).stem for name in listed(found["list"])]
        else:
            held_out = set(listed(found["validation"]))
            names = [file.stem for file in found["semantic"].glob("*.png") if file.stem not in held_out]
        return [
            Item(name, found["images"] / f"{name}.jpg", {"semantic": found["semantic"] / f"{name}.png"})
            for name in sorted(names)
        ]

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        return Labelled(self.relabel(index_picture(file), file))


@dataclass(frozen=True)
class Context(Layout):
    """The label maps `trainval/<image>.mat` of PASCAL Context on the images of `VOC2010`.

    Its train and validation images are those of VOC 2010.
    """

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {
            "images": ["JPEGImages"],
            "semantic": ["trainval", "PascalContext/trainval"],
            "list": [f"ImageSets/SegmentationContext/{part}.txt", f"ImageSets/Main/{part}.txt"],
        }

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        return [
            Item(name, found["images"] / f"{name}.jpg", {"semantic": found["semantic"] / f"{name}.mat"})
            for name in sorted(listed(found["list"]))
        ]

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        from scipy.io import loadmat

        file = item.labels["semantic"]
        try:
            values = loadmat(file)["LabelMap"]
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise InputError(f"Cannot read a LabelMap in '{file}' ({one_line(error)}): unpack it again.") from error
        return Labelled(self.relabel(values, file))


def pascal_voc_20() -> Layout:
    """Give VOC without background."""
    return _voc("PASCAL VOC 2012", "pascal_voc_20", "reduce_zero_label")


def pascal_voc_21() -> Layout:
    """Give VOC with background."""
    return _voc("PASCAL VOC 2012", "pascal_voc_21", "identity")


def pascal_context_59() -> Layout:
    """Give the 59 frequent classes; all others are ignored."""
    classes = {id: index for index, id in enumerate(release_ids("pascal_context_59"))}
    return _context("pascal_context_59", classes)


def pascal_context_60() -> Layout:
    """Give the 59 frequent classes; all others are background."""
    classes = {id: index for index, id in enumerate(release_ids("pascal_context_60"))}
    return _context("pascal_context_60", classes, other=0)


def pascal_context_459() -> Layout:
    """Give all classes."""
    classes = {id: index for index, id in enumerate(release_ids("pascal_context_459"))}
    return _context("pascal_context_459", classes)


def _voc(title: str, vocabulary: str, transform: str) -> Layout:
    return VOC(
        title,
        vocabulary,
        transform=transform,  # type: ignore[arg-type] # one of the two above
        tops=("", "VOC2012", "VOCdevkit/VOC2012"),
        parts={"train": "train", "train_aug": "aug", "validation": "val"},
    )


def _context(vocabulary: str, classes: Mapping[int, int], other: int | None = None) -> Layout:
    return Context(
        "PASCAL Context",
        vocabulary,
        # 255 is a label of these maps, so that it cannot stand for "no label".
        transform=values_of(classes, CONTEXT_LABELS, 65535, other),
        ignored=65535,
        tops=("", "VOC2010", "VOCdevkit/VOC2010"),
        parts={"train": "train", "validation": "val"},
    )
