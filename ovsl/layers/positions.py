"""Positions of the cells of a map: sine encodings, and learned grids brought to another size."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

PositionMode = Literal["bicubic", "bilinear", "offset"]
"""`offset` is `resize_with_offset`; a grid with as many cells as the learned one gets that as it is, whatever its shape
(SCLIP and its line)."""


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encode the cells of a map by sines and cosines of their normalised coordinates.

    The two-dimensional form of DETR (arXiv 2005.12872, appendix A.4) with coordinates scaled to `(0, 2 pi]`; half of
    the channels speak of the row, half of the column.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        channels: Size of the encoding, divisible by 4.
        device: Where to build it.

    Returns:
        `(height * width, channels)` float32, rows first.
    """
    half = channels // 2
    exponents = torch.arange(half, device=device, dtype=torch.float32) // 2 * 2 / half
    periods = 10000.0**exponents

    def encode(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angles = (steps / (length + 1e-6) * (2 * math.pi))[:, None] / periods
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def interpolate_positions(positions: Tensor, grid: tuple[int, int], mode: PositionMode = "bicubic") -> Tensor:
    """Resize a learned square position grid, the class row untouched.

    Args:
        positions: `(1 + g*g, width)`, class row first.
        grid: Wanted grid `(h, w)`.
        mode: Interpolation, without antialiasing, `align_corners=False`.

    Returns:
        `(1 + h*w, width)`.
    """
    side = int((positions.shape[0] - 1) ** 0.5)
    if grid == (side, side) or (mode == "offset" and grid[0] * grid[1] == side * side):
        return positions
    patches = positions[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
    if mode == "offset":
        patches = resize_with_offset(patches, grid)
    else:
        patches = functional.interpolate(patches, size=grid, mode=mode, align_corners=False)
    return torch.cat([positions[:1], patches.flatten(2).squeeze(0).T])


def resize_with_offset(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize as DINO and DINOv2 do, bicubic by a factor a tenth of a cell too large, which moves what is sampled.

    Args:
        maps: `(B, C, h, w)`.
        grid: Wanted grid `(h', w')`.

    Returns:
        `(B, C, h', w')`.
    """
    rows, columns = (
        _cubic_weights(side, wanted, like=maps) for side, wanted in zip(maps.shape[-2:], grid, strict=True)
    )
    return rows @ maps @ columns.T


def _cubic_weights(side: int, wanted: int, like: Tensor) -> Tensor:
    """Weights `(wanted, side)` of bicubic interpolation by the factor of `resize_with_offset`.

    `interpolate` computes the same from a `scale_factor`, which the compiler takes for a constant: it would compile for
    every size of images.
    """
    indices = torch.arange(wanted, device=like.device)
    places = (indices + 0.5) * side / (wanted + 0.1) - 0.5
    nearest = places.floor()
    taps = nearest[:, None] + torch.arange(-1, 3, device=like.device)
    distances = (places[:, None] - taps).abs()
    near = (1.25 * distances - 2.25) * distances**2 + 1
    far = ((-0.75 * distances + 3.75) * distances - 6) * distances + 3
    weights = torch.where(distances <= 1, near, far).to(like.dtype)
    # Beyond the border stands what stands at the border.
    cells = torch.arange(side, device=like.device)
    return (weights[:, :, None] * (taps.clamp(0, side - 1)[:, :, None] == cells)).sum(dim=1)
