"""Colours of the cells of a grid: no model at all, what stands in for one in worlds of a few colours."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cell_colors(images: Tensor, cell_size: int) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation of the colours in every cell.

    Args:
        images: Floating point `(B, 3, H, W)`.
        cell_size: Side of a cell in pixels; what is left over at the edges is not seen.

    Returns:
        Both `(B, 3, h, w)`.
    """
    mean = functional.avg_pool2d(images, cell_size)
    squares = functional.avg_pool2d(images.square(), cell_size)
    return mean, (squares - mean.square()).clamp(min=0).sqrt()
