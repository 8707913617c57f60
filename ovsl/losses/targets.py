"""Mask targets of a batch, kept flat so that no loss loops over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ovsl.losses.transfer import send


@dataclass(frozen=True)
class MaskTargets:
    """The target masks of all images of a batch, one image after the other.

    Attributes:
        labels: Class of each mask, int64 `(N,)`.
        masks: Binary masks, `(N, H, W)`, all at the padded size of the batch.
        counts: Number of masks of each image; may be zero.
    """

    labels: Tensor
    masks: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_semantic(cls, semantic: Tensor, num_classes: int) -> MaskTargets:
        """Make one mask for each class that an image holds, in ascending order of classes.

        Args:
            semantic: int64 `(B, H, W)`; values outside `0..num_classes - 1` belong to no mask.
            num_classes: C.
        """
        inside = (semantic >= 0) & (semantic < num_classes)
        classes = torch.where(inside, semantic, num_classes).flatten(1)
        present = torch.zeros(len(semantic), num_classes + 1, dtype=torch.bool, device=semantic.device)
        # The host has to know how many masks there are: the only wait.
        found = present.scatter_(1, classes, True)[:, :num_classes].cpu().numpy()
        image, labels = send(np.stack(found.nonzero()), semantic.device)
        return cls(labels, semantic[image] == labels[:, None, None], tuple(found.sum(1).tolist()))

    @classmethod
    def from_segments(cls, segment_ids: Tensor, classes: Sequence[Tensor]) -> MaskTargets:
        """Make one mask for each segment, an empty one where no pixel is left of it.

        Args:
            segment_ids: Integers `(B, H, W)`: 0 where there is no segment, else 1..N of the image.
            classes: For each image the class of its segments, int64 `(N,)`.
        """
        counts = [len(image) for image in classes]
        total = sum(counts)
        before = send(np.cumsum([-1, *counts])[:-1], segment_ids.device)
        # Every pixel marks the mask it belongs to; those of no segment mark one more, which is cut off.
        place = torch.where(segment_ids > 0, segment_ids + before[:, None, None], total)
        masks = torch.zeros(total + 1, *segment_ids.shape[1:], dtype=torch.bool, device=segment_ids.device)
        masks.scatter_(0, place, True)
        return cls(torch.cat(list(classes)), masks[:total], tuple(counts))

    def select(self, keep: Tensor) -> MaskTargets:
        """Keep only some masks.

        Args:
            keep: bool `(N,)`.
        """
        kept = keep.cpu().numpy().nonzero()[0]  # a wait, as for every number of masks
        image = np.repeat(np.arange(len(self.counts)), self.counts)[kept]
        place = send(kept, keep.device)
        counts = np.bincount(image, minlength=len(self.counts))
        return MaskTargets(self.labels[place], self.masks[place], tuple(counts.tolist()))

    @cached_property
    def slots(self) -> tuple[Tensor, Tensor]:
        """Image of each mask and its rank within the image, both int64 `(N,)`."""
        counts = np.array(self.counts, np.int64)
        image = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(len(image)) - (counts.cumsum() - counts)[image]
        images, ranks = send(np.stack([image, rank]), self.labels.device)
        return images, ranks
