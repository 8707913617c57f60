"""A method with its words: the object that everything asks which wants an image segmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ovsl.clip import TextEmbeddings
from ovsl.errors import InputError
from ovsl.evaluation.words import Words
from ovsl.inference import Inference, Prediction, Segmentation, Size, SlidingWindow, WholeImage, segment
from ovsl.inference.rows import Rows
from ovsl.inference.semantic import Predict
from ovsl.vocabulary import Vocabulary

_TOO_SMALL = "Kernel size can't be greater than actual input size"
"""What a convolution says of an image that it does not fit into once."""
PHOTO_PIXELS, PHOTO_SCORES, PHOTO_VALUES, MASKS = 1 << 21, 1 << 31, 1 << 28, 256
"""Most pixels of the maps of a photo; most scores computed for them; most values held for them at once; masks that a
method may predict."""


class Method(Protocol):
    """All that is known of a method here."""

    predicts_masks: bool
    needs_regions: bool

    def __call__(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> Prediction:
        """Segment uint8 images `(B, 3, H, W)` of one size; a method that needs them gets region maps `(B, H, W)`."""
        ...

    def words(self, vocabulary: Vocabulary) -> Words:
        """Embed a vocabulary and decide which of its classes count as seen."""
        ...


@dataclass(frozen=True)
class Trace:
    """An answer and what it comes from.

    Attributes:
        found: The answer.
        scores: Scores of the classes of the vocabulary at its size by rows, `(1, H0, W0, C)`.
        predictions: What the network said, in the order in which it was asked.
        positions: Class of the vocabulary for each class of the predictions, see `Words.positions`.
    """

    found: Segmentation
    scores: Rows
    predictions: tuple[Prediction, ...]
    positions: Tensor | None


class Segmenter:
    """Segments images with the words of one vocabulary.

    Args:
        method: How images and text become predictions.
        vocabulary: The classes to choose from.
        inference: How images go through the network.

    Raises:
        InputError: The inference cannot answer for the vocabulary.
    """

    def __init__(self, method: Method, vocabulary: Vocabulary, inference: Inference) -> None:
        inference.check(vocabulary)
        self.method = method
        self.inference = inference
        self.words = method.words(vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes of the answer, with their seen marks."""
        return self.words.vocabulary

    def __call__(
        self,
        images: Sequence[Tensor],
        sizes: Sequence[Size],
        segments: bool = False,
        regions: Sequence[Tensor] | None = None,
    ) -> list[Segmentation]:
        """Segment images of any sizes; those of one size go through the network together.

        Args:
            images: uint8 RGB `(3, H, W)` each.
            sizes: Size `(H0, W0)` at which each answer is wanted.
            segments: Whether panoptic maps and instances are wanted too, where the method predicts masks. Classes of a
                vocabulary that does not tell things from stuff count as things.
            regions: Region map `(H0, W0)` of each image; passed on to methods that need them.

        Returns:
            What was found in each image; labels are classes of the vocabulary.
        """
        return self._segment(self._predict, images, sizes, segments, regions)

    def _segment(
        self,
        predict: Predict,
        images: Sequence[Tensor],
        sizes: Sequence[Size],
        segments: bool,
        regions: Sequence[Tensor] | None,
    ) -> list[Segmentation]:
        things = self._things() if segments and self.method.predicts_masks else None
        groups: dict[tuple[Size, Size], list[int]] = {}
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            groups.setdefault(((image.shape[-2], image.shape[-1]), (size[0], size[1])), []).append(index)
        found: dict[int, Segmentation] = {}
        for (_, original_size), members in groups.items():
            stacked = torch.stack([images[index] for index in members])
            maps = None
            if regions is not None and self.method.needs_regions:
                maps = torch.stack([regions[index] for index in members])
            try:
                segmentations = segment(predict, stacked, original_size, self.inference, things, maps)
            except RuntimeError as error:
                if _TOO_SMALL not in str(error):
                    raise
                height, width = stacked.shape[-2:]
                raise InputError(
                    f"An image of {width}x{height} pixels is smaller than one patch of the network: leave it out, or "
                    "set a larger evaluation_transform."
                ) from error
            found.update(zip(members, map(self._in_vocabulary, segmentations), strict=True))
        return [found[index] for index in range(len(images))]

    def trace(self, image: Tensor, size: Size, segments: bool = False, region: Tensor | None = None) -> Trace:
        """Segment one image and show what the answer comes from; the network sees it as often as in a plain call.

        Args:
            image: uint8 RGB `(3, H, W)`.
            size: Size `(H0, W0)` at which the answer is wanted.
            segments: See `__call__`.
            region: Region map `(H0, W0)`, likewise.
        """
        predictions: list[Prediction] = []

        def record(images: Tensor, *regions: Tensor) -> Prediction:
            predictions.append(self._predict(images, *regions))
            return predictions[-1]

        (found,) = self._segment(record, [image], [size], segments, None if region is None else [region])
        # The same views in the same order: what the network said of them is said again.
        again = iter(predictions)
        rows = self.inference.score_rows(lambda *_: next(again), image[None], size)
        return Trace(found, rows.then(self._of_vocabulary), tuple(predictions), self.words.positions)

    def photos(
        self, images: Sequence[Tensor], sizes: Sequence[Size], regions: Sequence[Tensor] | None = None
    ) -> list[Segmentation]:
        """Segment photos of any sizes in bounded memory, with panoptic maps where the method predicts masks.

        Maps of a large photo are made at fewer pixels and brought to its size by the nearest one; scores are far
        coarser than that anyway. For what is scored against labels, call the segmenter itself.

        Args:
            images: uint8 RGB `(3, H, W)` each.
            sizes: Size `(H0, W0)` at which each answer is wanted.
            regions: Region map `(H0, W0)` of each image; passed on to methods that need them.

        Returns:
            What was found in each image, without instances.
        """
        found = self(images, [self.affordable(size) for size in sizes], segments=True, regions=regions)
        return [segmentation.enlarged(size) for segmentation, size in zip(found, sizes, strict=True)]

    def affordable(self, size: Size) -> Size:
        """Find the largest size of the same shape whose maps are held without harm."""
        most = photo_pixels(self.method.predicts_masks, self.inference, self.words.text.num_classes)
        factor = math.sqrt(most / (size[0] * size[1]))
        return size if factor >= 1 else (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))

    def scores(self, images: Tensor, size: Size | None = None) -> Tensor:
        """Compute the scores whose arg-max are the labels; for export and analyses.

        Args:
            images: uint8 RGB `(B, 3, H, W)`.
            size: Size at which scores are wanted; None for that of the images.

        Returns:
            `(B, C, H0, W0)`; minus infinity for classes that the method cannot predict.
        """
        scores = self.inference.scores(self._predict, images, size)
        return self._of_vocabulary(scores.movedim(1, -1)).movedim(-1, 1)

    def _of_vocabulary(self, scores: Tensor) -> Tensor:
        """Bring scores `(..., K)` of what the method can predict to the classes of the vocabulary, `(..., C)`."""
        if self.words.positions is None:
            return scores
        everything = scores.new_full((*scores.shape[:-1], len(self.vocabulary)), float("-inf"))
        return everything.scatter_reduce(-1, self.words.positions.expand_as(scores), scores, "amax")

    def _predict(self, images: Tensor, *regions: Tensor) -> Prediction:
        return self.method(images, self.words.text, *regions)

    def _things(self) -> list[bool]:
        things = self.vocabulary.things or (True,) * len(self.vocabulary)
        if self.words.positions is None:
            return list(things)
        return [things[position] for position in self.words.positions.tolist()]

    def _in_vocabulary(self, found: Segmentation) -> Segmentation:
        positions = self.words.positions
        if positions is None:
            return found
        panoptic, instances = found.panoptic, found.instances
        return Segmentation(
            positions[found.labels],
            panoptic and replace(panoptic, classes=positions[panoptic.classes]),
            instances and replace(instances, labels=positions[instances.labels]),
        )


def photo_pixels(predicts_masks: bool, inference: Inference, num_classes: int) -> int:
    """Find how many pixels of a photo are labelled each by itself in bounded memory and time; see `Segmenter.photos`.

    Args:
        predicts_masks: Of the method.
        inference: Of the method.
        num_classes: Of the vocabulary.
    """
    chunked = isinstance(inference, WholeImage | SlidingWindow)
    held = MASKS if predicts_masks else 1 if chunked else num_classes
    return min(PHOTO_PIXELS, PHOTO_SCORES // num_classes, PHOTO_VALUES // held)
