"""Dice loss on label maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.losses.averaging import average_count


def mask_areas(labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class in each image.

    Args:
        labels: int64 `(B, H, W)`; anything outside 0..C-1 is no class.
        num_classes: C.

    Returns:
        int64 `(B, C)`.
    """
    return _sum_by_class(labels, torch.ones_like(labels), num_classes)


def count_masks(labels: Tensor, num_classes: int) -> Tensor:
    """Count the (image, present class) pairs, averaged over the processes of the run, at least 1.

    Returns:
        float scalar.
    """
    return average_count((mask_areas(labels, num_classes) > 0).sum())


def dice_loss(logits: Tensor, labels: Tensor, num_masks: Tensor | float) -> Tensor:
    """Return the dice loss of the masks that are present, `1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)` (not squared).

    The sum of p runs over all pixels, those without a class included. Absent classes give nothing, so a batch
    without any label gives 0.

    Args:
        logits: `(B, C, H, W)`.
        labels: int64 `(B, H, W)`; anything outside 0..C-1 is no class.
        num_masks: Divisor, see `count_masks`.

    Returns:
        Scalar.
    """
    num_classes = logits.shape[1]
    areas = mask_areas(labels, num_classes)
    probabilities = logits.sigmoid()
    chosen = probabilities.gather(1, labels.clamp(0, num_classes - 1)[:, None])[:, 0]
    intersections = _sum_by_class(labels, chosen, num_classes)
    dice = (2 * intersections + 1) / (probabilities.sum((2, 3)) + areas + 1)
    return ((1 - dice) * (areas > 0)).sum() / num_masks


def _sum_by_class(labels: Tensor, values: Tensor, num_classes: int) -> Tensor:
    # One more bin takes the pixels without a class.
    bins = labels.where((labels >= 0) & (labels < num_classes), num_classes)
    sums = values.new_zeros(len(labels), num_classes + 1)
    return sums.scatter_add(1, bins.flatten(1), values.flatten(1))[:, :num_classes]
