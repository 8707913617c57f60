"""What a method returns: the one type between networks and maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.inference.rows import Rows


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of `(B, C, h, w)`, `align_corners=False`, no antialiasing; a no-op at the same size."""
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class WordClasses:
    """Class of every word, where a class may have several.

    Attributes:
        index: Ascending, int64 `(N,)`.
        num_classes: C; no device has to be waited for, and a graph has a fixed size.
    """

    index: Tensor
    num_classes: int

    def __len__(self) -> int:
        """N."""
        return len(self.index)


@dataclass(frozen=True)
class DensePrediction:
    """Class scores on a grid.

    Attributes:
        scores: `(B, C, h, w)`, larger is better.
        activation: Applied after the scores were upsampled to the input's size (ZegCLIP averages sigmoids of upsampled
            logits, MaskCLIP upsampled probabilities).
        class_offset: Subtracted after the activation, `(C,)`; None for none.
        padding: Pixels by which the grid reaches beyond the input at the left, right, top and bottom.
        word_classes: Class of each row of the scores where a class may have several words, of which the best speaks for
            it. None where rows are classes.
    """

    scores: Tensor
    activation: Literal["none", "sigmoid"] = "none"
    class_offset: Tensor | None = None
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    word_classes: WordClasses | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.scores.shape[1] if self.word_classes is None else self.word_classes.num_classes

    @property
    def num_channels(self) -> int:
        """The most numbers that a pixel has on the way to its scores."""
        return self.scores.shape[1]

    @property
    def num_images(self) -> int:
        """B."""
        return self.scores.shape[0]

    def images(self, chosen: slice) -> DensePrediction:
        """Take the prediction of some images of the batch."""
        return replace(self, scores=self.scores[chosen])

    def score_rows(self, size: tuple[int, int], classes: slice = slice(None)) -> Rows:
        """Scores of some classes at the size of the input, by rows."""
        if self.word_classes is not None:
            return self._best_words(self.word_classes, size, classes)
        left, right, top, bottom = self.padding
        height, width = size
        rows = Rows.of(self.scores[:, classes]).resized((height + top + bottom, width + left + right))
        rows = rows if rows.size == size else rows.cropped(size, top, left)
        if self.activation == "sigmoid":
            rows = rows.then(torch.sigmoid)
        if self.class_offset is not None:
            offset = self.class_offset[classes]
            rows = rows.then(lambda scores: scores - offset)
        return rows

    def semantic_scores(self, size: tuple[int, int], classes: slice = slice(None)) -> Tensor:
        """Scores of some classes at the size of the input, `(B, C', H, W)`."""
        return self.score_rows(size, classes).whole()

    def _best_words(self, word_classes: WordClasses, size: tuple[int, int], classes: slice) -> Rows:
        """Maximum over the words of each class after the resize."""
        wanted = range(self.num_classes)[classes]
        words = slice(None)
        if len(wanted) < self.num_classes:
            ends = word_classes.index.new_tensor([wanted.start, wanted.stop])
            words = slice(*torch.searchsorted(word_classes.index, ends).tolist())
        index = word_classes.index[words] - wanted.start

        def best(scores: Tensor) -> Tensor:
            lowest = scores.new_full((*scores.shape[:3], len(wanted)), float("-inf"))
            return lowest.scatter_reduce(3, index.expand_as(scores), scores, "amax")

        return replace(self, word_classes=None).score_rows(size, words).then(best)


@dataclass(frozen=True)
class MaskPrediction:
    """Masks and their classes, as query-mask methods give them.

    Attributes:
        mask_logits: `(B, Q, h, w)`.
        class_scores: Probability of each class for each mask, no-object left out: `(B, Q, C)`.
        no_object_scores: Probability that a query holds no object, `(B, Q)`; None where a method has no such class.
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
        """Mask logits at the size of the input, padding cut away: `(B, Q, H, W)`."""
        logits = resize(self.mask_logits, self.padded_size or size)
        return logits[..., : size[0], : size[1]]

    @property
    def num_channels(self) -> int:
        """The most numbers that a pixel has on the way to its scores."""
        return max(self.class_scores.shape[1:])

    @property
    def num_images(self) -> int:
        """B."""
        return self.mask_logits.shape[0]

    def images(self, chosen: slice) -> MaskPrediction:
        """Take the prediction of some images of the batch."""
        no_object = None if self.no_object_scores is None else self.no_object_scores[chosen]
        masks, scores = self.mask_logits[chosen], self.class_scores[chosen]
        return replace(self, mask_logits=masks, class_scores=scores, no_object_scores=no_object)

    def mask_rows(self, size: tuple[int, int]) -> Rows:
        """Mask logits at the size of the input, padding cut away, by rows."""
        return Rows.of(self.mask_logits).resized(self.padded_size or size).cropped(size)

    def classified(self, mask_rows: Rows, classes: slice = slice(None)) -> Rows:
        """Sum over queries of class probability times mask probability, from rows of mask logits."""
        scores = self.class_scores[..., classes]
        return mask_rows.then(lambda logits: torch.einsum("brwq,bqc->brwc", logits.sigmoid(), scores))

    def score_rows(self, size: tuple[int, int], classes: slice = slice(None)) -> Rows:
        """Scores of some classes at the size of the input, by rows; see `classified`."""
        return self.classified(self.mask_rows(size), classes)

    def semantic_scores(self, size: tuple[int, int], classes: slice = slice(None)) -> Tensor:
        """Scores of some classes at the size of the input, `(B, C', H, W)`; see `classified`."""
        return self.score_rows(size, classes).whole()


Prediction = DensePrediction | MaskPrediction
