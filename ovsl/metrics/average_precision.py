"""Mask average precision over classes, seen and unseen.

torchmetrics wants a compiled COCO back-end for this, keeps floats as states and knows no seen classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from ovsl.detections import (
    AREAS,
    IGNORED,
    NUM_THRESHOLDS,
    RIGHT,
    WRONG,
    AveragePrecision,
    AveragePrecisionRules,
    Detections,
    precision_scores,
)
from ovsl.errors import InputError

# As numpy rounds them, since the reference compares with these very numbers.
THRESHOLDS = tuple(np.linspace(0.5, 0.95, NUM_THRESHOLDS).tolist())


class LabelledMasks(NamedTuple):
    """Masks bool `(N, H, W)` and their classes, integers `(N,)`."""

    masks: Tensor
    labels: Tensor


class MaskAveragePrecision(Metric):
    """AP of scored masks by the rules of COCO (Lin et al., *Microsoft COCO*, ECCV 2014, arXiv 1405.0312).

    At each IoU threshold 0.50, 0.55 ... 0.95 the detections of an image claim, best score first, the unclaimed true
    mask of their class that they overlap most. Precision is read at 101 recalls from its envelope and averaged over
    recalls, thresholds and classes that occur in the truth. Crowd regions may be claimed by any number of detections,
    which then count neither as right nor as wrong; so do true masks outside the area range, and unmatched detections
    outside it.

    The states are integers and scores per detection. Detections of equal score are ordered by how they matched, so the
    result does not depend on the number of processes, as long as each image is counted once.

    Args:
        num_classes: Number of classes C.
        seen: Whether each class was seen in training, (C,). Without it the seen, unseen and harmonic means are NaN.
        max_detections: Detections of one class in one image that count, best first.

    Raises:
        ValueError: If `seen` has not C entries.

    Example:
        >>> import torch
        >>> metric = MaskAveragePrecision(num_classes=1)
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, :2] = True
        >>> metric.update(torch.tensor([0.9]), torch.tensor([0]), mask, torch.tensor([0]), mask)
        >>> float(metric.compute()["AP"])
        1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    areas: ClassVar[Mapping[str, tuple[float, float]]] = AREAS
    rules: ClassVar[AveragePrecisionRules] = "coco"

    #: The entries of `compute` that are single numbers.
    scalars: tuple[str, ...] = (
        "AP",
        "AP50",
        "AP75",
        "AP_small",
        "AP_medium",
        "AP_large",
        "AP_seen",
        "AP_unseen",
        "hAP",
    )

    detections: list[Tensor]
    scores: list[Tensor]
    truths: Tensor
    images: Tensor

    def __init__(self, num_classes: int, seen: Sequence[bool] | None = None, max_detections: int = 100) -> None:
        super().__init__()
        if seen is not None and len(seen) != num_classes:
            raise ValueError(
                f"`seen` has {len(seen)} entries for {num_classes} classes: give one entry for each class."
            )
        self.num_classes = num_classes
        self.seen = None if seen is None else tuple(bool(value) for value in seen)
        self.max_detections = max_detections
        self.add_state("detections", [], dist_reduce_fx="cat")
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("truths", torch.zeros(len(self.areas), num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        scores: Tensor,
        labels: Tensor,
        masks: Tensor,
        target_labels: Tensor,
        target_masks: Tensor,
        target_crowd: Tensor | None = None,
        void: Tensor | None = None,
    ) -> None:
        """Match the detections of one image.

        Args:
            scores: Confidence of each detection, floats (N,).
            labels: Classes, integers (N,).
            masks: bool (N, H, W).
            target_labels: Classes of the true masks, integers (M,).
            target_masks: bool (M, H, W).
            target_crowd: Whether each true mask is a crowd region, bool (M,). None for no crowd.
            void: Pixels without a label, bool (H, W), for rules that know them; COCO's do not.

        Raises:
            InputError: If sizes differ or a class is out of range; nothing is counted then.
        """
        self._check(scores, labels, masks, target_labels, target_masks)
        crowd = torch.zeros_like(target_labels, dtype=torch.bool) if target_crowd is None else target_crowd.bool()
        order = scores.argsort(descending=True, stable=True)
        order = order[_rank_in_class(labels[order]) < self.max_detections]
        scores, labels, masks = scores[order], labels[order].long(), masks[order]
        found, truth = LabelledMasks(masks, labels), LabelledMasks(target_masks, target_labels)
        codes, counted = self._judge(found, truth, crowd, void)
        self.detections.append(torch.cat([labels[:, None], codes.flatten(1)], dim=1).to(torch.int32))
        self.scores.append(scores.double())
        self.truths = self.truths + torch.stack(
            [torch.bincount(target_labels[kept], minlength=self.num_classes) for kept in counted]
        )
        self.images = self.images + 1

    def _judge(
        self, found: LabelledMasks, truth: LabelledMasks, crowd: Tensor, void: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Say what each detection of an image, by descending score, counts as, and which true masks count.

        Returns:
            See `Detections.codes`, `(N, A, T)`; and bool `(A, M)`.
        """
        iou, area, target_area = mask_iou(found.masks, truth.masks, crowd)
        # On the CPU: the claims follow one after the other, and the tables are small.
        table = torch.where(found.labels[:, None] == truth.labels, iou, -1.0).cpu()
        codes, counted = [], []
        for low, high in self.areas.values():
            ignored = crowd | (target_area < low) | (target_area > high)
            claimed, right = match_detections(table, ignored.cpu(), crowd.cpu())
            outside = ((area < low) | (area > high)).cpu()
            codes.append(torch.where(right, RIGHT, torch.where(claimed | outside[:, None], IGNORED, WRONG)))
            counted.append(~ignored)
        return torch.stack(codes, dim=1).to(found.labels.device), torch.stack(counted)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """See `Metric.sync`; a process without an image contributes no detection, but takes part."""
        if not self.detections:
            self.detections.append(self._no_detection())
            self.scores.append(torch.zeros(0, dtype=torch.float64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Build the precision curves.

        Returns:
            Fractions in 0..1 as float64 on the CPU, NaN where undefined. `scalars` names the single numbers: `AP`
            over all thresholds, at 0.50 and 0.75, of small (up to 32 x 32 pixels), medium and large masks (above
            96 x 96), over seen and over unseen classes, and the harmonic mean of these two, `hAP`. Per class, (C,),
            NaN where the truth lacks it: `ap`. And `images`, the number counted.
        """
        detections, scores = self.detections, self.scores
        if not len(detections):
            detections, scores = [self._no_detection()], [torch.zeros(0, dtype=torch.float64)]
        judged = self._judged(dim_zero_cat(detections), dim_zero_cat(scores))
        truths = self.truths.cpu().numpy()[None]
        precision = AveragePrecision(judged, 1, self.num_classes)(np.ones((1, 1)), truths)
        values = precision_scores(precision[0], self.seen)
        return {name: torch.as_tensor(value) for name, value in values.items()} | {"images": self.images.cpu()}

    def last_image(self) -> Detections:
        """Give the detections of the image that was counted last."""
        return self._judged(self.detections[-1], self.scores[-1])

    def _judged(self, table: Tensor, scores: Tensor) -> Detections:
        rows = table.cpu().numpy()
        codes = rows[:, 1:].reshape(len(rows), len(self.areas), NUM_THRESHOLDS).astype(np.uint8)
        return Detections(np.zeros(len(rows), np.int64), rows[:, 0], scores.cpu().numpy(), codes, self.rules)

    def _no_detection(self) -> Tensor:
        return torch.zeros(0, 1 + len(self.areas) * NUM_THRESHOLDS, dtype=torch.int32, device=self.device)

    def _check(
        self, scores: Tensor, labels: Tensor, masks: Tensor, target_labels: Tensor, target_masks: Tensor
    ) -> None:
        if masks.shape[1:] != target_masks.shape[1:]:
            raise InputError(
                f"the predicted masks are {tuple(masks.shape[1:])} but the true ones are "
                f"{tuple(target_masks.shape[1:])}: bring the prediction to the size of the target."
            )
        if not len(scores) == len(labels) == len(masks) or len(target_labels) != len(target_masks):
            raise InputError("scores, labels and masks differ in number: give one of each for every mask.")
        for what, values in (("predicted", labels), ("true", target_labels)):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                raise InputError(
                    f"a {what} mask has a class outside 0..{self.num_classes - 1}: check the labels and the vocabulary."
                )


def mask_iou(masks: Tensor, target_masks: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the IoU of detections and true masks; with crowd regions the share of the detection that they cover.

    Args:
        masks: bool (N, H, W).
        target_masks: bool (M, H, W).
        crowd: bool (M,).

    Returns:
        IoU float64 (N, M), and the areas in pixels, (N,) and (M,).
    """
    first, second = masks.flatten(1).float(), target_masks.flatten(1).float()
    # Counts of pixels are exact in float32 up to 2^24.
    common = (first @ second.T).double()
    area, target_area = first.sum(dim=1).double(), second.sum(dim=1).double()
    union = torch.where(crowd, area[:, None], area[:, None] + target_area - common)
    return common / union.clamp(min=1), area, target_area


def match_detections(iou: Tensor, ignored: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor]:
    """Let detections claim true masks, one after the other, at all thresholds together.

    Args:
        iou: (N, M), detections by descending score; negative where the classes differ.
        ignored: True masks that do not count, bool (M,).
        crowd: Those of them that may be claimed many times, bool (M,).

    Returns:
        Whether each detection claimed a true mask at each threshold, and whether it was one that counts, both bool
        (N, T).
    """
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)
    claimed = torch.zeros(len(iou), len(thresholds), dtype=torch.bool)
    right = torch.zeros_like(claimed)
    if not iou.numel():
        return claimed, right
    free = torch.ones(len(thresholds), iou.shape[1], dtype=torch.bool)
    # As in the reference, also in taking the last of equal overlaps below.
    enough = iou[:, None] >= thresholds.clamp(max=1 - 1e-10)[:, None]
    for number, overlaps in enumerate(iou):
        possible = enough[number] & free
        # A mask that counts is preferred to one that does not, whatever they overlap.
        counting = possible & ~ignored
        possible = torch.where(counting.any(dim=1, keepdim=True), counting, possible)
        best = torch.where(possible, overlaps, -1.0).flip(1).argmax(dim=1)
        best = iou.shape[1] - 1 - best
        claimed[number] = possible.any(dim=1)
        right[number] = claimed[number] & ~ignored[best]
        free[torch.arange(len(thresholds)), best] &= ~claimed[number] | crowd[best]
    return claimed, right


def _rank_in_class(labels: Tensor) -> Tensor:
    """For each entry the number of earlier entries with the same label."""
    order = labels.argsort(stable=True)
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels), device=labels.device)
    return rank - first[inverse]
