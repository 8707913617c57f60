"""Panoptic maps with a JSON file of their segments: COCO panoptic, and Mapillary Vistas, whose form is the same."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsl.data.sources import one_line
from ovsl.data.truth import run_length_mask, segments_of
from ovsl.errors import InputError
from ovsl.prepare.layout import Item, Labelled, Layout, Places, image_size, index_picture, paired
from ovsl.prepare.segments import run_length
from ovsl.vocabulary import release_ids


@dataclass(frozen=True)
class PanopticFiles(Layout):
    """A release with panoptic maps whose segments a JSON file lists."""

    def segments(self, listed: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
        """Make entries of `segments_info` of those of the JSON file, with class indices in place of its categories.

        Raises:
            InputError: A category that the release does not have.
        """
        class_of = {id: index for index, id in enumerate(release_ids(self.vocabulary))}
        things = self.words().things or ()
        if unknown := [entry["category_id"] for entry in listed if entry["category_id"] not in class_of]:
            raise InputError(f"'{file}' has a segment of category {unknown[0]}, which {self.title} does not have.")
        return [
            {
                "id": int(entry["id"]),
                "category_id": class_of[entry["category_id"]],
                "isthing": bool(things[class_of[entry["category_id"]]]),
                "iscrowd": bool(entry.get("iscrowd")),
                "bbox": [int(value) for value in entry["bbox"]],
                "area": int(entry["area"]),
            }
            for entry in listed
        ]


@dataclass(frozen=True)
class COCOPanoptic(PanopticFiles):
    """Panoptic maps and their JSON file; where they are there, the masks of mask AP, which overlap."""

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {
            "images": [part, f"images/{part}"],
            "panoptic": [f"panoptic_{part}", f"annotations/panoptic_{part}"],
            "segments": [f"annotations/panoptic_{part}.json", f"panoptic_{part}.json"],
        }

    def extras(self, part: str) -> Places:
        """See `Layout`."""
        return {"instances": [f"annotations/instances_{part}.json", f"instances_{part}.json"]}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        listed = read_json(found["segments"])
        names = {image["id"]: image["file_name"] for image in listed["images"]}
        instances: dict[int, list[Any]] | None = None
        if "instances" in found:
            instances = defaultdict(list)
            for entry in read_json(found["instances"])["annotations"]:
                instances[entry["image_id"]].append(entry)
        items = []
        for entry in listed["annotations"]:
            file = found["panoptic"] / entry["file_name"]
            annotation = {"segments": entry["segments_info"]}
            if instances is not None:
                annotation["instances"] = instances[entry["image_id"]]
            image = found["images"] / names[entry["image_id"]]
            items.append(Item(image.stem, image, {"panoptic": file}, annotation))
        return sorted(items, key=lambda item: item.id)

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`; the semantic map is that of the segments, pixels of no segment are ignored."""
        file, vocabulary = item.labels["panoptic"], self.words()
        encoded = file.read_bytes()
        listed = self.segments(item.annotation["segments"], file)
        size = image_size(encoded, file)[::-1]
        segments = segments_of(encoded, listed, size, "segments_info", f"'{file}'")
        class_of = np.array([vocabulary.ignore_index, *segments.classes], np.uint8)
        instances = None
        if "instances" in item.annotation:
            index_of = {id: index for index, id in enumerate(release_ids(self.vocabulary))}
            entries = item.annotation["instances"]
            instances = [run_length(entry, index_of[entry["category_id"]], size) for entry in entries]
        return Labelled(class_of[segments.ids], encoded, listed, instances)


@dataclass(frozen=True)
class PaintedObjects(Layout):
    """COCO-Object as CLIP-DIY has it: background everywhere, instance masks painted over it in their order."""

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {
            "images": [part, f"images/{part}"],
            "instances": [f"annotations/instances_{part}.json", f"instances_{part}.json"],
        }

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        content = read_json(found["instances"])
        masks: dict[int, list[Any]] = defaultdict(list)
        for entry in content["annotations"]:
            masks[entry["image_id"]].append(entry)
        listed = sorted(content["images"], key=lambda image: image["file_name"])
        return [
            Item(Path(image["file_name"]).stem, found["images"] / image["file_name"], {}, {"masks": masks[image["id"]]})
            for image in listed
        ]

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        size = image_size(item.image.read_bytes(), item.image)[::-1]
        index_of = {id: index for index, id in enumerate(release_ids(self.vocabulary))}
        semantic = np.zeros(size, np.uint8)
        for entry in item.annotation["masks"]:
            made = run_length(entry, index_of[entry["category_id"]], size)
            semantic[run_length_mask(made["segmentation"]["counts"], size)] = made["category_id"]
        return Labelled(semantic)


@dataclass(frozen=True)
class MapillaryVistas(PanopticFiles):
    """Version 1.2: palette pictures of values 0..64, 65 for no label, and where they are there, panoptic maps."""

    def places(self, part: str) -> Places:
        """See `Layout`."""
        return {
            "images": [f"{part}/images"],
            # Release 2.0 brings the labels of 1.2 along; its own have other classes.
            "semantic": [f"{part}/labels", f"{part}/v1.2/labels"],
        }

    def extras(self, part: str) -> Places:
        """See `Layout`."""
        return {"panoptic": [f"{part}/panoptic/panoptic_2018.json", f"{part}/v1.2/panoptic/panoptic_2018.json"]}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        folders = {"semantic": found["semantic"]}
        if "panoptic" not in found:
            return paired(found["images"], folders)
        listed = read_json(found["panoptic"])["annotations"]
        segments = {Path(entry["file_name"]).stem: entry["segments_info"] for entry in listed}
        items = paired(found["images"], {**folders, "panoptic": found["panoptic"].parent})
        if lacking := [item.id for item in items if item.id not in segments]:
            raise InputError(f"'{found['panoptic']}' does not list {len(lacking)} images, the first is '{lacking[0]}'.")
        return [Item(item.id, item.image, item.labels, {"segments": segments[item.id]}) for item in items]

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        semantic = self.relabel(index_picture(file), file)
        if "panoptic" not in item.labels:
            return Labelled(semantic)
        file = item.labels["panoptic"]
        encoded, listed = file.read_bytes(), self.segments(item.annotation["segments"], file)
        segments_of(encoded, listed, semantic.shape, "segments_info", f"'{file}'")  # refuses what does not fit
        return Labelled(semantic, encoded, listed)


def read_json(file: Path) -> dict[str, Any]:
    """Read an annotation file.

    Raises:
        InputError: It is not JSON, or cut short.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{file}' is not whole JSON ({one_line(error)}): unpack the release again.") from error
    return content


def coco_panoptic_133() -> Layout:
    """Give COCO panoptic."""
    return COCOPanoptic(
        "COCO panoptic",
        "coco_panoptic_133",
        tops=("", "coco", "COCO"),
        parts={"train": "train2017", "validation": "val2017"},
    )


def painted_coco_object_81() -> Layout:
    """Give COCO-Object from instance masks; nothing is ignored."""
    return PaintedObjects(
        "COCO-Object",
        "coco_object_81",
        tops=("", "coco", "COCO"),
        parts={"train": "train2017", "validation": "val2017"},
    )


def mapillary_vistas_65() -> Layout:
    """Give Mapillary Vistas 1.2."""
    return MapillaryVistas(
        "Mapillary Vistas 1.2",
        "mapillary_vistas_65",
        ignored=65,
        tops=("", "mapillary_vistas"),
        parts={"train": "training", "validation": "validation"},
    )
