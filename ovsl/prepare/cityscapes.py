"""Cityscapes: label ids, and panoptic maps of its instance ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovsl.errors import InputError
from ovsl.prepare.layout import Item, Labelled, Layout, Places, index_picture, paired, values_of
from ovsl.prepare.segments import describe_segments, encode_ids, ranked
from ovsl.vocabulary import release_ids

LABELS = 34
"""Label ids 0..33."""

INSTANCES_OF_A_CLASS = 1000
"""An instance id is 1000 times the label id, plus a number; smaller ones are label ids of stuff and of groups."""


@dataclass(frozen=True)
class Cityscapes(Layout):
    """`leftImg8bit` and `gtFine`; panoptic maps as those of Cityscapes' own `createPanopticImgs`."""

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {"images": [f"leftImg8bit/{part}"], "labels": [f"gtFine/{part}"]}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        return paired(
            found["images"],
            {"semantic": found["labels"], "panoptic": found["labels"]},
            "_leftImg8bit",
            {"semantic": "_gtFine_labelIds.png", "panoptic": "_gtFine_instanceIds.png"},
        )

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        semantic = self.relabel(index_picture(file), file)
        ids = index_picture(item.labels["panoptic"]).astype(np.int64)
        if ids.shape != semantic.shape:
            raise InputError(f"'{item.labels['panoptic']}' and '{file}' differ in size: unpack the release again.")
        grouped = ids < INSTANCES_OF_A_CLASS
        classes = self.relabel(np.where(grouped, ids, ids // INSTANCES_OF_A_CLASS), item.labels["panoptic"])
        vocabulary = self.words()
        ids = np.where(classes == vocabulary.ignore_index, 0, ids)
        found, ranks = ranked(ids)
        class_of = np.zeros(len(found), np.uint8)
        class_of[ranks] = classes  # all pixels of a segment have one class
        of_segment = dict(zip(found.tolist(), class_of.tolist(), strict=True))
        things = vocabulary.things or ()
        crowd = frozenset(id for id in of_segment if 0 < id < INSTANCES_OF_A_CLASS and things[of_segment[id]])
        return Labelled(semantic, encode_ids(ids), describe_segments(ids, of_segment, things, crowd))


def cityscapes_19() -> Layout:
    """Give the fine annotations."""
    classes = {id: index for index, id in enumerate(release_ids("cityscapes_19"))}
    return Cityscapes(
        "Cityscapes",
        "cityscapes_19",
        transform=values_of(classes, LABELS, 255),
        tops=("", "cityscapes"),
        parts={"train": "train", "validation": "val"},
    )
