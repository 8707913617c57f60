"""Mask average precision by the rules of Cityscapes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ovsl.detections import IGNORED, RIGHT, WRONG, AveragePrecisionRules
from ovsl.metrics.average_precision import LabelledMasks, MaskAveragePrecision

# As numpy rounds them, since the reference compares with these very numbers.
THRESHOLDS = tuple(np.arange(0.5, 1.0, 0.05).tolist())
SMALLEST_REGION = 100
"""Pixels of the smallest true mask that counts."""


class CityscapesAveragePrecision(MaskAveragePrecision):
    """AP of scored masks by the rules of Cityscapes (Cordts et al., CVPR 2016, arXiv 1604.01685), as in its scripts.

    A detection is right at a threshold if its IoU with a true mask of its class is larger; of several for one mask the
    best is, the others are wrong. Groups, true masks of fewer than 100 pixels and pixels without a label can neither
    be found nor missed: what overlaps one of these masks by more than the threshold does not count, nor does a
    detection without a match whose share of pixels in them is larger than the threshold. The curve of precision over
    recall is joined by straight lines, down to precision 1 at recall 0, with one point for each distinct score; it is
    not made monotone.

    Args:
        num_classes: Number of classes C.
        seen: Whether each class was seen in training, `(C,)`. Without it the seen, unseen and harmonic means are NaN.

    Raises:
        ValueError: If `seen` has not C entries.
    """

    areas: ClassVar[Mapping[str, tuple[float, float]]] = {"": (SMALLEST_REGION, 1e10)}
    rules: ClassVar[AveragePrecisionRules] = "cityscapes"
    scalars = ("AP", "AP50", "AP75", "AP_seen", "AP_unseen", "hAP")

    def __init__(self, num_classes: int, seen: Sequence[bool] | None = None) -> None:
        super().__init__(num_classes, seen, max_detections=sys.maxsize)

    def _judge(
        self, found: LabelledMasks, truth: LabelledMasks, crowd: Tensor, void: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64, device=found.labels.device)
        masks, target_masks = found.masks.flatten(1).float(), truth.masks.flatten(1).float()
        # Counts of pixels are exact in float32 up to 2^24.
        common = torch.where(found.labels[:, None] == truth.labels, masks @ target_masks.T, 0.0).double()
        area, target_area = masks.sum(dim=1).double(), target_masks.sum(dim=1).double()
        overlap = common / (area[:, None] + target_area - common).clamp(min=1)
        enough = overlap[..., None] > thresholds
        small = target_area < SMALLEST_REGION
        counted = ~crowd & ~small
        claims = enough & counted[:, None]
        # Detections come by descending score: the first that claims a mask has it.
        right = (claims & (claims.cumsum(dim=0) == 1)).any(dim=1)
        wrong = claims.any(dim=1) & ~right
        # A small group is ignored twice, as in the reference.
        ignored = common @ (crowd.double() + small.double())
        if void is not None:
            ignored = ignored + (masks @ void.flatten().float()).double()
        outside = ignored[:, None] / area[:, None].clamp(min=1) > thresholds
        unmatched = ~enough.any(dim=1) & ~outside & (area > 0)[:, None]
        codes = torch.where(right, RIGHT, torch.where(wrong | unmatched, WRONG, IGNORED))
        return codes[:, None], counted[None]
