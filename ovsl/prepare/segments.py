"""Panoptic maps and instances as rows hold them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage


def encode_png(values: np.ndarray) -> bytes:
    """Encode labels, uint8 or uint16 `(H, W)`, or a colour picture, uint8 `(H, W, 3)`.

    Zlib's default effort: its best one makes files of labels a tenth smaller and takes ten times as long.
    """
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def encode_ids(ids: np.ndarray) -> bytes:
    """Encode segment ids `(H, W)` as the colours R + 256 G + 65536 B."""
    return encode_png((ids[..., None] >> np.array([0, 8, 16])).astype(np.uint8))


def describe_segments(
    ids: np.ndarray, classes: Mapping[int, int], things: Sequence[bool], crowd: frozenset[int] = frozenset()
) -> list[dict[str, Any]]:
    """Make the entries of `segments_info`.

    Args:
        ids: Segment of every pixel `(H, W)`, 0 for none.
        classes: Class index of each segment.
        things: Whether a class is countable.
        crowd: Segments of uncounted things.
    """
    numbers, ranks, areas = np.unique(np.append(ids.ravel(), 0), return_inverse=True, return_counts=True)
    places = ndimage.find_objects(ranks[:-1].reshape(ids.shape))
    return [
        {
            "id": int(number),
            "category_id": classes[int(number)],
            "isthing": bool(things[classes[int(number)]]),
            "iscrowd": int(number) in crowd,
            "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
            "area": int(area),
        }
        for number, area, (rows, columns) in zip(numbers[1:], areas[1:], places, strict=True)
    ]


def run_length(entry: Mapping[str, Any], category: int, size: tuple[int, int]) -> dict[str, Any]:
    """Make an entry of `instances` of one of COCO's, whose polygons become a mask by COCO's own rule.

    Args:
        entry: An annotation of an `instances` file.
        category: Its class index.
        size: Height and width of the image.
    """
    # COCO's rasteriser decides which pixels are those of a polygon.
    from pycocotools import mask as coco  # type: ignore[import-untyped]

    shape = entry["segmentation"]
    if isinstance(shape, list):
        code = coco.merge(coco.frPyObjects(shape, *size))
    elif isinstance(shape["counts"], list):
        code = coco.frPyObjects(shape, *size)
    else:
        code = shape
    counts = code["counts"]
    return {
        "category_id": category,
        "iscrowd": bool(entry.get("iscrowd")),
        "bbox": [float(value) for value in entry["bbox"]],
        "area": float(entry["area"]),
        "segmentation": {"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts},
    }
