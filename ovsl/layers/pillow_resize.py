"""Pillow's bicubic resize on batches of square images, equal to the last bit."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Pillow resizes 8-bit images with integer weights of this many fractional bits.
WEIGHT_BITS = 22


def resize_square(images: Tensor, size: int) -> Tensor:
    """Resize square images as `PIL.Image.resize` does with `BICUBIC`: antialiased, on 8-bit values, columns first.

    Args:
        images: uint8 `(..., S, S)`.
        size: Wanted side.

    Returns:
        uint8 `(..., size, size)`.
    """
    return _resize_last(_resize_last(images, size).mT, size).mT


def _resize_last(values: Tensor, size: int) -> Tensor:
    if values.shape[-1] == size:
        return values
    weights = _weights(values.shape[-1], size).to(values.device)
    # Doubles hold the integer sums exactly.
    sums = values.double() @ weights
    return (sums / 2**WEIGHT_BITS + 0.5).floor().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _weights(length: int, size: int) -> Tensor:
    """Integer weights of every source position for every target position, as doubles `(length, size)`."""
    with torch.inference_mode(False):
        scale = length / size
        stretch = max(scale, 1.0)
        centers = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
        first = (centers - 2 * stretch + 0.5).trunc().clamp(min=0)
        end = (centers + 2 * stretch + 0.5).trunc().clamp(max=length)
        positions = torch.arange(length, dtype=torch.float64)[:, None]
        weights = _bicubic((positions - centers + 0.5) * (1 / stretch))
        weights = torch.where((positions >= first) & (positions < end), weights, 0)
        weights = weights / weights.sum(dim=0)
        return (weights * 2**WEIGHT_BITS + weights.sign() * 0.5).trunc()


def _bicubic(x: Tensor, a: float = -0.5) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))
