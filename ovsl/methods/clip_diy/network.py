"""CLIP-DIY: overlapping crops of several sizes, each classified by CLIP as an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.errors import InputError
from ovsl.layers import resize_square


@dataclass(frozen=True)
class CLIPDIYSizes:
    """Sizes of the crops.

    Args:
        image_size: Side of the square that images are brought to, in pixels; their aspect ratio is lost.
        crop_sizes: Sides of the crops.
        strides: Parts that a side is divided into to give the step between crops: 2 for half.
        weights: One for each pair of a crop size and a stride, strides changing first.
    """

    image_size: int = 256
    crop_sizes: tuple[int, ...] = (256, 128, 64)
    strides: tuple[float, ...] = (2,)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Crop size and step in pixels of every level.

        Raises:
            InputError: There is not one weight for each, or a crop does not fit into the image or never moves.
        """
        levels = [(size, int(size // stride)) for size in self.crop_sizes for stride in self.strides]
        if len(levels) != len(self.weights):
            raise InputError(
                f"{len(self.crop_sizes)} crop_sizes and {len(self.strides)} strides make {len(levels)} levels, but "
                f"there are {len(self.weights)} weights; give one for each level."
            )
        for size, step in levels:
            if not 0 < size <= self.image_size or step < 1:
                raise InputError(
                    f"Crops of {size} pixels every {step} do not go into images of {self.image_size}; give crop_sizes "
                    "of at most image_size, and strides of at most the crop size."
                )
        return levels


def resize_bilinear(images: Tensor, side: int) -> Tensor:
    """Resize uint8 `(B, 3, H, W)` to a square as OpenCV does it on 8-bit values."""
    if images.shape[-2:] == (side, side):
        return images
    resized = [
        torch.from_numpy(cv2.resize(image.permute(1, 2, 0).contiguous().numpy(), (side, side)))
        for image in images.cpu()
    ]
    return torch.stack(resized).permute(0, 3, 1, 2).to(images.device)


def crops(images: Tensor, size: int, step: int) -> Tensor:
    """Square crops `(B, n, n, C, size, size)` of square images, rows first; what is left over is not looked at."""
    return images.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 1, 4, 5)


class ImageEmbedding(nn.Module):
    """An unaltered CLIP's embedding of images.

    Args:
        tower: CLIP's vision transformer; it is read, not owned.
    """

    def __init__(self, tower: ViTTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        """Embed images: normalised `(N, 3, H, W)` -> unit `(N, D)`."""
        *_, (tokens, _) = self.tower.intermediate_tokens(images)
        return functional.normalize(self.tower.project(tokens[:, :1]).flatten(1), dim=-1)


def resized_crops(images: Tensor, levels: list[tuple[int, int]], side: int) -> list[Tensor]:
    """Crops of every level at the size of CLIP's training, uint8 `(B, n, n, 3, side, side)` each."""
    return [resize_square(crops(images, size, step), side) for size, step in levels]


def aggregate(
    grids: Sequence[Tensor], weights: Sequence[float], side: int, interpolation: Literal["bilinear", "nearest"]
) -> Tensor:
    """Mean over the levels of their weighted grids, each stretched over the whole image.

    Args:
        grids: `(B, C, n, n)` of each level.
        weights: One for each level; the mean is not divided by their sum.
        side: Side S of the image.
        interpolation: How a grid is stretched.

    Returns:
        `(B, C, S, S)`.
    """
    total: Tensor | None = None
    for grid, weight in zip(grids, weights, strict=True):
        stretched = weight * stretch(grid, side, interpolation)
        total = stretched if total is None else total.add_(stretched)
    assert total is not None
    return total / len(grids)


def stretch(grid: Tensor, side: int, interpolation: Literal["bilinear", "nearest"]) -> Tensor:
    """Bring a grid `(B, C, n, n)` to `(B, C, S, S)`."""
    return functional.interpolate(grid, size=(side, side), mode=interpolation)


def guide(scores: Tensor, foreground: Tensor) -> Tensor:
    """Multiply by the foreground, or for class 0 by what is left of it to 1, and take the softmax, as published.

    The softmax has no temperature and makes nearly equal products equal in single precision, of which the first wins.

    Args:
        scores: `(B, C, S, S)`, class 0 the background.
        foreground: Probability `(B, 1, S, S)`.
    """
    shares = torch.cat([1 - foreground, foreground.expand(-1, scores.shape[1] - 1, -1, -1)], dim=1)
    return (scores * shares).softmax(dim=1)
