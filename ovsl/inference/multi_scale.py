"""Several views of an image, resized and mirrored, whose class probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovsl.inference.prediction import resize
from ovsl.inference.semantic import Inference, Predict, Size, SlidingWindow, WholeImage


class MultiScale(Inference):
    """Mean of the softmax over views of several scales and their mirror images, MMSegmentation's rule.

    The softmax needs all classes of a pixel, so a `(C, H0, W0)` tensor is held for one image at a time. Scales are
    relative to the image as the data module hands it over; MMSegmentation resizes the original file once per scale.

    Args:
        inference: How each view goes through the network.
        scales: Factors of both sides.
        flip: Also take the mirror image of every view.
    """

    def __init__(
        self,
        inference: WholeImage | SlidingWindow = WholeImage(),
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
    ) -> None:
        self.inference = inference
        self.scales = tuple(scales)
        self.flip = flip

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `labels`; image by image, images uint8 or 0..1."""
        return torch.cat([self.scores(predict, one[None], original_size).argmax(1) for one in images])

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`; mean class probabilities."""
        original_size = original_size or (images.shape[-2], images.shape[-1])
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        total: Tensor | None = None
        for scale in self.scales:
            size = (round(images.shape[-2] * scale), round(images.shape[-1] * scale))
            view = resize(values, size)
            for mirrored in (False, True) if self.flip else (False,):
                scores = self.inference.scores(predict, view.flip(-1) if mirrored else view)
                probabilities = resize(scores, original_size).softmax(1)
                probabilities = probabilities.flip(-1) if mirrored else probabilities
                total = probabilities if total is None else total + probabilities
        assert total is not None
        return total / (len(self.scales) * (1 + self.flip))
