"""What a method returns: the one type between networks and maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of ``(B, C, h, w)``, ``align_corners=False``, no antialiasing; a no-op at the same size."""
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class DensePrediction:
    """Class scores on a grid.

    Attributes:
        scores: ``(B, C, h, w)``, larger is better.
        activation: Applied after the scores were upsampled to the input's size (ZegCLIP averages sigmoids of upsampled
            logits, MaskCLIP upsampled probabilities).
        class_offset: Subtracted after the activation, ``(C,)``; None for none.
        padding: Pixels by which the grid reaches beyond the input at the left, right, top and bottom.
        word_classes: Class of each row of the scores where a class may have several words, ascending, int64; the best
            word speaks for its class. None where rows are classes.
    """

    scores: Tensor
    activation: Literal["none", "sigmoid"] = "none"
    class_offset: Tensor | None = None
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    word_classes: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.scores.shape[1] if self.word_classes is None else int(self.word_classes[-1]) + 1

    def semantic_scores(self, size: tuple[int, int], classes: slice = slice(None)) -> Tensor:
        """Scores of some classes at the size of the input, ``(B, C', H, W)``."""
        if self.word_classes is not None:
            return self._best_words(self.word_classes, size, classes)
        left, right, top, bottom = self.padding
        height, width = size
        scores = resize(self.scores[:, classes], (height + top + bottom, width + left + right))
        scores = scores[..., top : top + height, left : left + width]
        if self.activation == "sigmoid":
            scores = scores.sigmoid()
        if self.class_offset is not None:
            scores = scores - self.class_offset[classes].view(-1, 1, 1)
        return scores

    def _best_words(self, word_classes: Tensor, size: tuple[int, int], classes: slice) -> Tensor:
        """Maximum over the words of each class after the resize, ``(B, C', H, W)``."""
        wanted = range(self.num_classes)[classes]
        rows = slice(*torch.searchsorted(word_classes, word_classes.new_tensor([wanted.start, wanted.stop])).tolist())
        scores = replace(self, word_classes=None).semantic_scores(size, rows)
        index = (word_classes[rows] - wanted.start).view(1, -1, 1, 1).expand_as(scores)
        best = scores.new_full((len(scores), len(wanted), *size), float("-inf"))
        return best.scatter_reduce(1, index, scores, "amax")


@dataclass(frozen=True)
class MaskPrediction:
    """Masks and their classes, as query-mask methods give them.

    Attributes:
        mask_logits: ``(B, Q, h, w)``.
        class_scores: Probability of each class for each mask, no-object left out: ``(B, Q, C)``.
        no_object_scores: Probability that a query holds no object, ``(B, Q)``; None where a method has no such class.
        padded_size: Size in input pixels that the mask grid spans, padding at the bottom and right included; None
            when the input was not padded.
    """

    mask_logits: Tensor
    class_scores: Tensor
    no_object_scores: Tensor | None = None
    padded_size: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.class_scores.shape[2]

    def resized_mask_logits(self, size: tuple[int, int]) -> Tensor:
        """Mask logits at the size of the input, padding cut away: ``(B, Q, H, W)``."""
        logits = resize(self.mask_logits, self.padded_size or size)
        return logits[..., : size[0], : size[1]]

    def semantic_scores(self, size: tuple[int, int], classes: slice = slice(None)) -> Tensor:
        """Sum over queries of class probability times mask probability, ``(B, C', H, W)``."""
        masks = self.resized_mask_logits(size).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", self.class_scores[..., classes], masks)


Prediction = DensePrediction | MaskPrediction
