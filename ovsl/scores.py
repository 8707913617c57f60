"""From counts per class to scores: the one place where figures are defined. NumPy only, for any number of samples.

Counts are `(..., C)`: metrics divide the sums of a dataset, a bootstrap those of a thousand samples of its images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

AbsentClasses = Literal["skip", "zero"]

PIXELS = ("intersection", "prediction_area", "target_area")
"""Counts of pixels of a class: those that were found, that were called so, that are so."""
SEGMENTS = ("iou_sum", "true_positives", "false_positives", "false_negatives")
"""Counts of segments of a class: the IoU of matches in units of 1 / `IOU_UNIT`, matches, wrong ones, missed ones."""

ASKED = ("asked",)
"""Count of the pixels of all images that were asked for a class; `PIXELS` are those of the answers then."""

IOU_UNIT = 1 << 40
"""Sums of the IoU of segments are kept in whole multiples of 1 / IOU_UNIT: integers add up alike in any order."""


BINS = 400
SMALLEST_MARGIN, LARGEST_MARGIN = 1e-4, 1e3
"""Margins between scores that bins tell apart: relative to their size above the smallest, in equal steps below it."""
MARGIN_REACH = math.asinh(LARGEST_MARGIN / SMALLEST_MARGIN)


def margin_edges() -> np.ndarray:
    """Edges of the bins of margins, ascending, `(BINS + 1,)`; the middle one is 0."""
    return SMALLEST_MARGIN * np.sinh(MARGIN_REACH * np.arange(-BINS // 2, BINS // 2 + 1) / (BINS // 2))


def semantic_scores(
    counts: Mapping[str, np.ndarray], seen: Sequence[bool] | None = None, absent: AbsentClasses = "skip"
) -> dict[str, np.ndarray]:
    """Divide counts of pixels; what the scores are is said by `ovsl.metrics.OpenVocabularyIoU`.

    Args:
        counts: `PIXELS` of each class, `(..., C)`.
        seen: Whether each class was seen in training; without it the seen, unseen and harmonic means are NaN.
        absent: How classes without ground truth enter the means.

    Returns:
        float64, NaN where undefined: `pAcc`, `mIoU`, `fwIoU`, `mIoU_seen`, `mIoU_unseen` and `hIoU`, `(...)`, and
        `iou` of each class, `(..., C)`.
    """
    intersection, prediction_area, target_area = (counts[name] for name in PIXELS)
    total = target_area.sum(-1)
    iou = divide(intersection, prediction_area + target_area - intersection)
    if absent == "skip":
        iou = np.where(target_area == 0, np.nan, iou)
    return {
        "pAcc": divide(intersection.sum(-1), total),
        "mIoU": mean(iou),
        "fwIoU": divide(np.nansum(target_area * iou, -1), total),
        **seen_and_unseen(iou, seen, ("mIoU_seen", "mIoU_unseen", "hIoU")),
        "iou": iou,
    }


def panoptic_scores(
    counts: Mapping[str, np.ndarray], things: Sequence[bool], seen: Sequence[bool] | None = None
) -> dict[str, np.ndarray]:
    """Divide counts of segments; what the scores are is said by `ovsl.metrics.PanopticQuality`.

    Args:
        counts: `SEGMENTS` of each class, `(..., C)`.
        things: Whether each class is countable.
        seen: Whether each class was seen in training.

    Returns:
        float64, NaN where undefined: the `scalars` of `PanopticQuality`, `(...)`, and `pq`, `sq` and `rq` of each
        class, `(..., C)`.
    """
    iou_sum, true_positives, false_positives, false_negatives = (counts[name] for name in SEGMENTS)
    quality = iou_sum / IOU_UNIT
    size = true_positives + (false_positives + false_negatives) / 2
    # No match has no quality of matches: 0, as in the COCO panoptic API, where the class occurs at all.
    sq = np.where(size > 0, quality / np.maximum(true_positives, 1), np.nan)
    rq, pq = divide(true_positives, size), divide(quality, size)
    marks = np.asarray(things, bool)
    scores = {}
    for suffix, chosen in (("", np.ones_like(marks)), ("_things", marks), ("_stuff", ~marks)):
        for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq)):
            scores[f"{name}{suffix}"] = mean(values[..., chosen])
    return scores | seen_and_unseen(pq, seen, ("PQ_seen", "PQ_unseen", "hPQ")) | {"pq": pq, "sq": sq, "rq": rq}


def episode_scores(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divide counts of questions; what the scores are is said by `ovsl.metrics.episodes.EpisodeIoU`.

    Args:
        counts: `PIXELS` and `ASKED` of each class, `(..., C)`.

    Returns:
        float64, NaN where nothing was asked: `binary_mIoU` and `FB_IoU`, `(...)`, and `iou` of each class, `(..., C)`.
    """
    intersection, prediction_area, target_area = (counts[name] for name in PIXELS)
    foreground, asked = prediction_area + target_area - intersection, counts[ASKED[0]]
    # What lies in neither area is common to both backgrounds, what lies in one of them in their union.
    both = divide((asked - foreground).sum(-1), (asked - intersection).sum(-1))
    one = divide(intersection.sum(-1), foreground.sum(-1))
    iou = divide(intersection, foreground)
    return {"binary_mIoU": mean(iou), "FB_IoU": (one + both) / 2, "iou": iou}


def seen_and_unseen(
    values: np.ndarray, seen: Sequence[bool] | None, names: tuple[str, str, str]
) -> dict[str, np.ndarray]:
    """Means over seen and over unseen classes, and the harmonic mean of the two.

    Args:
        values: Of each class, `(..., C)`, NaN where it does not enter the means.
        seen: Whether each class is seen; None for no such distinction, all three are NaN then.
        names: What the three are called.
    """
    marks = np.zeros(values.shape[-1], bool) if seen is None else np.asarray(seen, bool)
    others = np.zeros_like(marks) if seen is None else ~marks
    first, second = mean(values[..., marks]), mean(values[..., others])
    return dict(zip(names, (first, second, harmonic_mean(first, second)), strict=True))


def harmonic_mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Harmonic mean of two non-negative numbers: 0 if both are 0, NaN if either is."""
    both = np.asarray(first + second)
    return np.where(both == 0, 0.0, divide(2 * first * second, both))


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over classes `(..., C)` of those that are not NaN; NaN where none is left."""
    return divide(np.nansum(values, -1), np.isfinite(values).sum(-1))


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient as float64, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(denominator, 0), np.nan, np.divide(numerator, denominator))
