"""Maps of class-agnostic regions beside images: resized, and labels made one within each region."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def resize_regions(regions: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest neighbour (source row `floor(row * H / h)`) of integer maps `(B, H, W)` below 2**24 -> `(B, h, w)`."""
    resized = functional.interpolate(regions[:, None].float(), size=size, mode="nearest")
    return resized[:, 0].to(regions.dtype)


def most_frequent_labels(labels: Tensor, regions: Tensor) -> Tensor:
    """Give all pixels of a region the most frequent label in it.

    The smallest value of a map stands for pixels that no region covers, which keep their labels, also where that value
    is not 0 (CorrCLIP's rule). Of equally frequent labels the smallest wins.

    Args:
        labels: int64 `(B, H, W)`.
        regions: Integer `(B, H, W)`.

    Returns:
        int64 `(B, H, W)`.
    """
    return torch.stack([_most_frequent(*maps) for maps in zip(labels, regions, strict=True)])


def _most_frequent(labels: Tensor, regions: Tensor) -> Tensor:
    values, numbers = regions.unique(return_inverse=True)
    num_labels = int(labels.max()) + 1
    counts = (numbers * num_labels + labels).flatten().bincount(minlength=len(values) * num_labels)
    frequent = counts.view(len(values), num_labels).argmax(1)
    return torch.where(numbers == 0, labels, frequent[numbers])
