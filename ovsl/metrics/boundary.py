"""Pixels near the contours of classes, for boundary IoU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.metrics.segmentation import count_pixels

DILATION = 0.02
"""Width of the band along a contour, as a share of the diagonal of the image."""


def boundary_counts(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, ...]:
    """Count the pixels of each class that lie near its contour.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562): of both masks only what lies within 2 % of the diagonal of
    its own contour counts, the border of the image being a contour. Here it is summed over the images of a class, as
    mIoU is. Ignored pixels are cut out of the prediction too, so that both maps have the same hole.

    Args:
        prediction: Labels in 0..C-1, integers `(H, W)`.
        target: Labels in 0..C-1 or `ignore_index`, likewise.
        num_classes: C.
        ignore_index: Target value of pixels that are not evaluated.

    Returns:
        Pixels near both contours, near that of the prediction, near that of the target, each int64 `(C,)`.
    """
    ignored = target == ignore_index
    width = max(1, round(DILATION * math.hypot(*target.shape)))
    # One label above all classes stands for what is in no band.
    labels = [torch.where(ignored, num_classes, each.long()) for each in (prediction, target)]
    found, true = (torch.where(near_contour(each, width), each, num_classes) for each in labels)
    counts = count_pixels(found, true, num_classes + 1, num_classes + 1)
    return tuple(each[:num_classes] for each in counts)


def near_contour(labels: Tensor, width: int) -> Tensor:
    """Mark the pixels that an erosion of their own class by `width` steps of 3 x 3 removes; all classes at once.

    A pixel stays where its whole window has its label: where the largest and the smallest label in it are the same.

    Args:
        labels: Non-negative integers `(H, W)`.
        width: Pixels.

    Returns:
        bool `(H, W)`.
    """
    outside = -1.0
    padded = functional.pad(labels[None, None].float(), (width,) * 4, value=outside)
    side = 2 * width + 1
    largest, smallest = (_largest(sign * padded, side) * sign for sign in (1, -1))
    return (largest != smallest)[0, 0]


def _largest(values: Tensor, side: int) -> Tensor:
    """Maximum over square windows, rows and columns one after the other."""
    return functional.max_pool2d(functional.max_pool2d(values, (1, side), stride=1), (side, 1), stride=1)
