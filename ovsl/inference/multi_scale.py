"""Several views of an image, resized and mirrored, whose class probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.inference.prediction import resize
from ovsl.inference.semantic import Inference, Predict, SlidingWindow, WholeImage, average_windows


class MultiScale(Inference):
    """Mean of the softmax over views of several scales and their mirror images, MMSegmentation's rule.

    The softmax needs all classes of a pixel, so a ``(C, H0, W0)`` tensor is held for one image at a time. Scales are
    relative to the image as the data module hands it over; MMSegmentation resizes the original file once per scale.

    Args:
        inference: How each view goes through the network.
        scales: Factors of both sides.
        flip: Also take the mirror image of every view.
    """

    def __init__(
        self,
        inference: Inference = WholeImage(),  # noqa: B008 - never mutated
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
    ) -> None:
        self.inference = inference
        self.scales = tuple(scales)
        self.flip = flip

    def labels(self, predict: Predict, images: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Label maps ``(B, H0, W0)`` of images ``(B, 3, H, W)``, uint8 or 0..1."""
        return self.probabilities(predict, images, original_size).argmax(1)

    def probabilities(self, predict: Predict, images: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Mean class probabilities ``(B, C, H0, W0)``."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        total: Tensor | None = None
        for scale in self.scales:
            size = (round(images.shape[-2] * scale), round(images.shape[-1] * scale))
            view = resize(values, size)
            for mirrored in (False, True) if self.flip else (False,):
                scores = window_scores(predict, view.flip(-1) if mirrored else view, self.inference)
                probabilities = resize(scores, original_size).softmax(1)
                probabilities = probabilities.flip(-1) if mirrored else probabilities
                total = probabilities if total is None else total + probabilities
        assert total is not None
        return total / (len(self.scales) * (1 + self.flip))


def window_scores(predict: Predict, images: Tensor, inference: Inference) -> Tensor:
    """Scores of all classes at the size of the images ``(B, 3, H, W)``: ``(B, C, H, W)``."""
    size = (images.shape[-2], images.shape[-1])
    if isinstance(inference, WholeImage):
        return predict(images).semantic_scores(size)
    assert isinstance(inference, SlidingWindow)
    windows = inference.windows(*size)
    crops = torch.cat([images[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows])
    predictions = [predict(chunk) for chunk in crops.split(inference.window_batch_size * len(images))]
    return average_windows(predictions, windows, size)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad with black at the bottom and right until ``multiple`` divides both sides of ``(B, 3, H, W)``."""
    height, width = images.shape[-2:]
    return functional.pad(images, (0, -width % multiple, 0, -height % multiple))


def label_maps_of_views(predict: Predict, batch: dict[str, Any], inference: Any) -> list[Tensor]:
    """Label maps of an evaluation batch with an inference that has ``labels``, image by image."""
    pairs = zip(batch["image"], batch["original_size"], strict=True)
    return [inference.labels(predict, image[None], tuple(original))[0] for image, original in pairs]
