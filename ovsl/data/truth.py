"""Ground truth of segments and instances from cells of a table, and columns of plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ovsl.data.sources import InstanceTruth, Segments, decode_image
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary


def segments_of(
    encoded: Any, listed: list[dict[str, Any]] | None, size: tuple[int, ...], column: str, where: str
) -> Segments:
    """Read a panoptic map.

    Args:
        encoded: The map, an RGB picture of ids R + 256 G + 65536 B, 0 where there is no segment.
        listed: Its segments: `id`, `category_id`, `iscrowd`.
        size: Height and width of the image.
        column: Name of the column that lists the segments.
        where: How messages call the row.

    Raises:
        InputError: The cells are not those of a panoptic map of this size.
    """
    if encoded is None or listed is None:
        raise InputError(f"There is no panoptic map in {where}: remove the row or leave panoptic_column out.")
    colours = np.asarray(decode_image(encoded, f"panoptic map of {where}", mode="RGB")).astype(np.int32)
    if colours.shape[:2] != size:
        raise InputError(f"Image and panoptic map differ in size in {where}: repair or remove the row.")
    stored = colours @ np.array([1, 1 << 8, 1 << 16], np.int32)
    try:
        known = np.array([0, *(entry["id"] for entry in listed)], np.int64)
        classes = np.array([entry["category_id"] for entry in listed], np.int64)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Column '{column}' of {where} does not list segments with id and category_id: "
            "name another column in segments_column."
        ) from error
    order = known.argsort()
    place = np.searchsorted(known, stored, sorter=order).clip(max=len(known) - 1)
    ids = order.astype(np.uint16)[place]
    if (wrong := known[ids] != stored).any():
        raise InputError(
            f"Segment {int(stored[wrong][0])} of the panoptic map of {where} is not in '{column}': "
            "repair or remove the row."
        )
    return Segments(ids, classes, np.array([bool(entry.get("iscrowd")) for entry in listed], bool))


def instances_of(listed: list[dict[str, Any]] | None, size: tuple[int, ...], column: str, where: str) -> InstanceTruth:
    """Read the true masks of things.

    Args:
        listed: `category_id`, `iscrowd` and `segmentation`, a compressed run-length code, of each; empty or None where
            the image has none.
        size: Height and width of the image.
        column: Name of the column.
        where: How messages call the row.

    Raises:
        InputError: The cell does not list instances of an image of this size.
    """
    listed = listed or []
    try:
        masks = [run_length_mask(entry["segmentation"]["counts"], size) for entry in listed]
        classes = np.array([entry["category_id"] for entry in listed], np.int64)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Column '{column}' of {where} does not list instances with category_id and a run-length code of the size "
            "of the image: repair it or leave instances_column out."
        ) from error
    crowd = np.array([bool(entry.get("iscrowd")) for entry in listed], bool)
    return InstanceTruth(np.stack(masks) if masks else np.zeros((0, *size), bool), classes, crowd)


def run_length_mask(counts: str | bytes, size: tuple[int, ...]) -> np.ndarray:
    """Decode a compressed run-length code.

    Runs of zeros and ones alternate, column by column. Each is a number of five bits a character, the lowest first,
    with its sign in the fifth bit of the last one; from the fourth on, what is stored is the difference from the run
    two before (COCO API, `maskApi.c`).

    Args:
        counts: The code.
        size: Height and width of the mask.

    Returns:
        bool `(height, width)`.

    Raises:
        ValueError: The code is not one of a mask of this size.
    """
    data = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = (data & 32) == 0
    if data.size and (data.min() < 0 or data.max() > 63 or not last[-1]):
        raise ValueError("no run-length code")
    # Position of each character inside its number.
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]])) if data.size else np.zeros(0, np.int64)
    lengths = np.diff(np.concatenate([starts, [data.size]]))
    place = np.arange(data.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((data & 31) << (5 * place), starts) if data.size else starts
    values -= ((data[last] & 16) != 0).astype(np.int64) << (5 * lengths)
    # Differences add up along the even and the odd runs; the first three stand for themselves.
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError("a run-length code of another size")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size[1], size[0]).T


def countable(segments: Segments, vocabulary: Vocabulary, hidden_classes: Sequence[int] = ()) -> Segments:
    """Make training targets of segments: crowd regions left out, stuff of one class merged.

    Args:
        segments: With class indices of the vocabulary.
        vocabulary: Knows things from stuff.
        hidden_classes: Class indices whose segments are left out.
    """
    kept = ~segments.crowd & ~np.isin(segments.classes, hidden_classes)
    # Every thing is a group of its own, all stuff of a class is one.
    thing = np.array(vocabulary.things)[segments.classes]
    group = np.where(thing, np.arange(len(thing)) + len(vocabulary), segments.classes)
    _, numbers = np.unique(group[kept], return_inverse=True)
    result = np.zeros(len(kept), np.int64)
    result[kept] = numbers + 1
    return segments.renumber(result)


def integer_columns(urls: Sequence[str], columns: list[str]) -> list[np.ndarray]:
    """Read columns of integers of Parquet files, and nothing else of them.

    Args:
        urls: The files.
        columns: Names of the columns.

    Returns:
        Each column over all files, `(rows,)`.

    Raises:
        KeyError: A file lacks a column.
        OSError: A file cannot be read.
    """
    import fsspec  # type: ignore[import-untyped]
    import pyarrow.parquet as pq

    def read(url: str) -> list[np.ndarray]:
        with fsspec.open(url, "rb") as file:
            opened = pq.ParquetFile(file)
            for column in columns:
                if column not in opened.schema_arrow.names:
                    raise KeyError(column)
            table = opened.read(columns=columns)
            return [np.asarray(table.column(column)) for column in columns]

    with ThreadPoolExecutor(8) as pool:
        return [np.concatenate(values) for values in zip(*pool.map(read, urls), strict=True)]
