"""Normalisation of images on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ImageNormalization(nn.Module):
    """Bring uint8 images to the value range that an encoder was trained with.

    Args:
        mean: Channel means for values in 0..1.
        std: Channel standard deviations, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 RGB 0..255, or floating point 0..1, `(..., 3, H, W)` -> the same shape, normalised."""
        values = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return (values - self.mean) / self.std
