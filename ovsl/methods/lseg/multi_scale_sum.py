"""The multi-scale evaluation that LSeg's figures on ADE20K come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.inference.semantic import Inference, Predict, Size


class MultiScaleSum(Inference):
    """Sum of logits over scales and mirror images, the evaluation of the PyTorch-Encoding package.

    Unlike elsewhere in the field, scales set the long side, windows that pass the border are cut there and padded with
    black, resizes align corners, and logits are summed, not probabilities averaged.

    Args:
        base_size: Long side at scale 1.
        crop_size: Side of the windows; the stride is two thirds of it.
        scales: Factors of `base_size`.
        flip: Also add the logits of the mirror image.
        window_batch_size: Windows that go through the network together.
    """

    def __init__(
        self,
        base_size: int = 520,
        crop_size: int = 480,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        window_batch_size: int = 8,
    ) -> None:
        self.base_size = base_size
        self.crop_size = crop_size
        self.scales = tuple(scales)
        self.flip = flip
        self.window_batch_size = window_batch_size

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
        """Sum the logits, `(B, K, H0, W0)`; see `Inference.scores`."""
        size = original_size or (images.shape[-2], images.shape[-1])
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        total = [_resize(self._view(predict, values, scale), size) for scale in self.scales]
        return torch.stack(total).sum(0)

    def _view(self, predict: Predict, images: Tensor, scale: float) -> Tensor:
        """Logits of one scale, `(B, K, h, w)`."""
        height, width = images.shape[-2:]
        long_side = math.ceil(self.base_size * scale)
        if height > width:
            size = (long_side, int(width * long_side / height + 0.5))
        else:
            size = (int(height * long_side / width + 0.5), long_side)
        view = self._pad(_resize(images, size))
        rows, columns = (self._spans(side) for side in view.shape[-2:])
        spans = [(y, x) for y in rows for x in columns]
        crops = torch.cat([self._pad(view[..., slice(*y), slice(*x)]) for y, x in spans])
        logits = torch.cat([self._logits(predict, crop) for crop in crops.split(self.window_batch_size)])
        logits = logits.unflatten(0, (len(spans), -1))
        total = logits.new_zeros(*logits.shape[1:3], *view.shape[-2:])
        count = logits.new_zeros(view.shape[-2:])
        for part, (y, x) in zip(logits, spans, strict=True):
            total[..., slice(*y), slice(*x)] += part[..., : y[1] - y[0], : x[1] - x[0]]
            count[slice(*y), slice(*x)] += 1
        return (total / count)[..., : size[0], : size[1]]

    def _spans(self, side: int) -> list[tuple[int, int]]:
        stride = int(self.crop_size * (2.0 / 3.0))
        count = math.ceil((side - self.crop_size) / stride) + 1
        return [(index * stride, min(index * stride + self.crop_size, side)) for index in range(count)]

    def _pad(self, images: Tensor) -> Tensor:
        """Black at the bottom and right up to the size of a window; larger sides stay."""
        height, width = images.shape[-2:]
        missing = (0, max(self.crop_size - width, 0), 0, max(self.crop_size - height, 0))
        return functional.pad(images, missing)

    def _logits(self, predict: Predict, crops: Tensor) -> Tensor:
        size = (crops.shape[-2], crops.shape[-1])
        logits = predict(crops).semantic_scores(size)
        return logits + predict(crops.flip(-1)).semantic_scores(size).flip(-1) if self.flip else logits


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)
