"""Rows whose labels are class indices of a vocabulary."""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

import cv2
import numpy as np

from ovsl.data.sources import (
    INVALID_LABEL,
    InstanceTruth,
    Row,
    Segments,
    Source,
    UndecodableImageError,
    classes_of,
    label_table,
)
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class LabelledRows:
    """Rows of a source with masks in class indices of a vocabulary.

    Args:
        source: Where rows come from.
        vocabulary: Classes of the labels.
        on_error: `error` raises on an image that cannot be decoded, `skip` counts and logs it.

    Attributes:
        skipped: Number of rows skipped so far, over all workers of this process.

    Raises:
        InputError: The source has segments, but the vocabulary does not know things from stuff.
    """

    def __init__(self, source: Source, vocabulary: Vocabulary, on_error: str = "error") -> None:
        if source.panoptic and vocabulary.things is None:
            raise InputError(
                f"Vocabulary '{vocabulary.name}' does not say which classes are things, which the segments of "
                f"{source.name} need: leave panoptic_column out."
            )
        self.source = source
        self.vocabulary = vocabulary
        self.on_error = on_error
        self._skipped = multiprocessing.Value("q", 0)
        self._table = label_table(source.label_transform, source.ignore_index, len(vocabulary), vocabulary.ignore_index)
        # A label that no pixel may have.
        self._spare = len(vocabulary) + int(vocabulary.ignore_index == len(vocabulary))
        # OpenCV resizes masks of 8 and 16 bits.
        self._dtype = np.uint8 if max(self._spare, vocabulary.ignore_index) < 256 else np.uint16
        bytes_table = self._table[:256]
        self._labels: np.ndarray[Any, np.dtype[np.integer[Any]]] = np.where(
            bytes_table == INVALID_LABEL, self._spare, bytes_table
        ).astype(self._dtype)

    @property
    def skipped(self) -> int:
        """Number of rows skipped so far, over all workers of this process."""
        return self._skipped.value

    def row(self, index: int) -> Row | None:
        """Read a row and map its labels.

        Args:
            index: Row number.

        Returns:
            The row with a mask of class indices and `ignore_index`, uint8 or uint16, and segments with class indices;
            segments of ignored classes and those without a pixel are left out. None where the row was skipped.

        Raises:
            InputError: The row cannot be used, or a label lies outside the vocabulary.
        """
        try:
            row = self.source.row(index)
        except UndecodableImageError as error:
            self.skip(error)
            return None
        if row.semantic is None:
            return row
        semantic = self.semantic(row.semantic, index, row.id)
        segments = None if row.segments is None else self._segments(row.segments, index, row.id)
        instances = None if row.instances is None else self._instances(row.instances, index, row.id)
        return Row(row.id, row.image, semantic, row.path, segments, row.regions, instances)

    def semantic(self, values: np.ndarray, index: int, id: str) -> np.ndarray:
        """Map a mask of label values to class indices and `ignore_index`, uint8 or uint16.

        Args:
            values: Label values, any integer type `(H, W)`.
            index: Row number, for messages.
            id: Name of the row, for messages.

        Raises:
            InputError: A label lies outside the vocabulary.
        """
        if values.dtype == np.uint8:
            labels: np.ndarray = cv2.LUT(values, self._labels)
            if not (labels == self._spare).any():
                return labels
            classes = self._table[values]
        elif values.dtype == np.uint16:
            classes = self._table[values]
        else:
            values = values.astype(np.int64)
            classes = classes_of(values, self._table)
        if classes.min(initial=0) < 0:
            raise InputError(
                f"Label value {int(values[classes < 0].max())} in row {index} ('{id}') of {self.source.name} is "
                f"outside the {len(self.vocabulary)} classes of vocabulary '{self.vocabulary.name}': set "
                "label_transform, ignore_index or the vocabulary of this data."
            )
        return classes.astype(self._dtype)

    def skip(self, error: UndecodableImageError) -> None:
        """Leave a row out, count and log it, or raise: as `on_error` says."""
        if self.on_error != "skip":
            raise error
        with self._skipped.get_lock():
            self._skipped.value += 1
        logger.warning("Skipped (%d so far): %s", self.skipped, error)

    def _segments(self, segments: Segments, index: int, id: str) -> Segments:
        classes = self._classes(segments.classes, "a segment", index, id)
        kept = classes != self.vocabulary.ignore_index
        kept &= np.bincount(segments.ids.ravel(), minlength=len(classes) + 1)[1:] > 0
        return Segments(segments.ids, classes, segments.crowd).renumber(kept.cumsum() * kept)

    def _instances(self, instances: InstanceTruth, index: int, id: str) -> InstanceTruth:
        classes = self._classes(instances.classes, "an instance", index, id)
        kept = classes != self.vocabulary.ignore_index
        return InstanceTruth(instances.masks[kept], classes[kept], instances.crowd[kept])

    def _classes(self, categories: np.ndarray, what: str, index: int, id: str) -> np.ndarray:
        classes = classes_of(categories, self._table).astype(np.int64)
        if classes.min(initial=0) < 0:
            raise InputError(
                f"Category {int(categories[classes < 0].max())} of {what} in row {index} ('{id}') of "
                f"{self.source.name} is outside the {len(self.vocabulary)} classes of vocabulary "
                f"'{self.vocabulary.name}': set label_transform, ignore_index or the vocabulary of this data."
            )
        return classes
