"""Mask targets of a batch, kept flat so that no loss loops over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        present = present.scatter_(1, classes, True)[:, :num_classes]
        image, labels = present.nonzero(as_tuple=True)
        return cls(labels, semantic[image] == labels[:, None, None], tuple(present.sum(1).tolist()))

    @classmethod
    def from_segments(cls, segment_ids: Tensor, classes: Sequence[Tensor]) -> MaskTargets:
        """Make one mask for each segment, an empty one where no pixel is left of it.

        Args:
            segment_ids: Integers `(B, H, W)`: 0 where there is no segment, else 1..N of the image.
            classes: For each image the class of its segments, int64 `(N,)`.
        """
        counts = torch.tensor([len(image) for image in classes], device=segment_ids.device)
        first, total = counts.cumsum(0) - counts, sum(len(image) for image in classes)
        # Every pixel marks the mask it belongs to; those of no segment mark one more, which is cut off.
        place = torch.where(segment_ids > 0, segment_ids + (first - 1)[:, None, None], total)
        masks = torch.zeros(total + 1, *segment_ids.shape[1:], dtype=torch.bool, device=segment_ids.device)
        masks.scatter_(0, place, True)
        return cls(torch.cat(list(classes)), masks[:total], tuple(len(image) for image in classes))

    def select(self, keep: Tensor) -> MaskTargets:
        """Keep only some masks.

        Args:
            keep: bool `(N,)`.
        """
        counts = torch.bincount(self.slots[0][keep], minlength=len(self.counts))
        return MaskTargets(self.labels[keep], self.masks[keep], tuple(counts.tolist()))

    @property
    def slots(self) -> tuple[Tensor, Tensor]:
        """Image of each mask and its rank within the image, both int64 `(N,)`."""
        counts = torch.tensor(self.counts, dtype=torch.int64, device=self.labels.device)
        image = torch.repeat_interleave(counts, output_size=len(self.labels))
        first = counts.cumsum(0) - counts
        return image, torch.arange(len(self.labels), device=image.device) - first[image]
