"""What a method trains on: the seen classes of the training vocabulary, their text, labels and masks."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ovsl.clip import TextEmbeddings, TextEncoder
from ovsl.data.batches import TrainingBatch
from ovsl.losses import MaskTargets
from ovsl.vocabulary import Vocabulary


class TrainingClasses:
    """The classes whose labels may be used in training; all of them where the vocabulary has no split.

    Labels of batches are indices of the whole vocabulary; what the losses see are ranks among the seen classes.

    Args:
        vocabulary: The training vocabulary.
        text_encoder: Embeds class names.
    """

    def __init__(self, vocabulary: Vocabulary, text_encoder: TextEncoder) -> None:
        self.vocabulary = vocabulary
        self.seen = vocabulary.subset(vocabulary.seen_indices)
        self.ignore_index = vocabulary.ignore_index
        self._text_encoder = text_encoder
        lookup = torch.full((max(self.ignore_index, len(vocabulary)) + 1,), self.ignore_index, dtype=torch.int64)
        lookup[torch.tensor(vocabulary.seen_indices)] = torch.arange(len(self.seen))
        self._rank = lookup

    def __len__(self) -> int:
        return len(self.seen)

    def text(self) -> TextEmbeddings:
        """Embed the seen classes, in their order."""
        return self._text_encoder(self.seen)

    def targets(self, semantic: Tensor) -> Tensor:
        """Turn labels into ranks among the seen classes.

        Args:
            semantic: int64, any shape, indices of the vocabulary or its `ignore_index`.

        Returns:
            int64 of the same shape: ranks, and `ignore_index` for all else, pixels of unseen classes included.
        """
        if self._rank.device != semantic.device:
            self._rank = self._rank.to(semantic.device)
        return self._rank[semantic]

    def masks(self, batch: TrainingBatch, keep_empty: bool = False) -> MaskTargets:
        """Make target masks with ranks as labels; none of unseen classes.

        One mask for each segment where the data has panoptic maps, else one for each class that an image holds.

        Args:
            batch: Of the training data.
            keep_empty: Whether segments that the crop cut away stay, as labels without a pixel.
        """
        if "segment_ids" not in batch:
            return MaskTargets.from_semantic(self.targets(batch["semantic"]), len(self.seen))
        targets = MaskTargets.from_segments(batch["segment_ids"], cast(list[Tensor], batch.get("segment_classes")))
        labels = self.targets(targets.labels)
        keep = labels != self.ignore_index
        if not keep_empty:
            keep &= targets.masks.flatten(1).any(dim=1)
        return replace(targets, labels=labels).select(keep)
