"""Gathers what every image adds to the sums of the metrics of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ovsl.detections import Detections
from ovsl.results.image_counts import ImageCounts

_AT_A_TIME = 64
"""Images whose counts wait on the device, so that the host waits for it only now and then."""


class ImageCounting:
    """Counts of each image, from sums that grow: what an image adds is the difference before and after it.

    Args:
        names: Of the sums, in the order in which they are stacked, see `ovsl.results.image_counts`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._ids: list[str] = []
        self._waiting: list[Tensor] = []
        self._detections: list[Detections] = []
        self._parts: list[ImageCounts] = []

    def add(self, id: str, added: Tensor, detections: Detections | None = None) -> None:
        """Take the counts of one image.

        Args:
            id: Its name.
            added: int64 `(len(names), C)`.
            detections: Of this image, where they are counted.
        """
        if detections is not None:
            self._detections.append(detections.of_images(len(self._ids)))
        self._ids.append(id)
        self._waiting.append(added)
        if len(self._waiting) == _AT_A_TIME:
            self._fetch()

    def gather(self) -> ImageCounts | None:
        """Put the images of all processes together, None where there is none; every process has to call this."""
        self._fetch()
        parts = self._parts
        if dist.is_available() and dist.is_initialized():
            gathered: list[list[ImageCounts]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, parts)
            parts = [part for own in gathered for part in own]
        return ImageCounts.join(parts) if parts else None

    def _fetch(self) -> None:
        if self._waiting:
            tables = torch.stack(self._waiting).cpu().numpy()
            self._parts.append(ImageCounts.of(self._ids, tables, self.names, self._detections))
            self._ids, self._waiting, self._detections = [], [], []
