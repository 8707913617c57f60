"""Panoptic maps and instances as rows hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from scipy import ndimage


def encode_png(values: np.ndarray) -> bytes:
    """Encode labels, uint8 or uint16 `(H, W)`, or a colour picture, uint8 `(H, W, 3)`.

    Without the filters that photos need, labels become smaller than by Pillow's `optimize`, in a tenth of its time.
    """
    plain = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE) if hasattr(cv2, "IMWRITE_PNG_FILTER") else ()
    stored = values if values.ndim == 2 else np.ascontiguousarray(values[..., ::-1])
    _, encoded = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 6, *plain])
    return encoded.tobytes()


def encode_ids(ids: np.ndarray) -> bytes:
    """Encode segment ids `(H, W)` as the colours R + 256 G + 65536 B."""
    return encode_png(ids.astype("<i4").view(np.uint8).reshape(*ids.shape, 4)[..., :3])


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
    numbers, ranks = ranked(ids)
    areas = np.bincount(ranks.ravel(), minlength=len(numbers))
    places = ndimage.find_objects(ranks)
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


def ranked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank keys in their order, 0 first whether it occurs or not.

    Args:
        keys: Integers `(H, W)` from 0 to some ten thousands, for which counting is much faster than sorting.

    Returns:
        The keys that occur, ascending, and the place of every pixel's among them, int32 `(H, W)`.
    """
    counts = np.bincount(keys.ravel())
    counts[0] += 1
    numbers = np.flatnonzero(counts)
    place = np.zeros(len(counts), np.int32)
    place[numbers] = np.arange(len(numbers))
    return numbers, place[keys]


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
