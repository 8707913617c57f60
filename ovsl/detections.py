"""From scored masks that were judged to average precision, for all images or any draws of them. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ovsl.scores import divide, mean, seen_and_unseen

if TYPE_CHECKING:
    from scipy.sparse import csr_array

AveragePrecisionRules = Literal["coco", "cityscapes"]
"""Whose mask AP: that of the COCO API, or that of Cityscapes' scripts, see `ovsl.metrics`."""

NUM_THRESHOLDS = 10
"""IoU from which on a detection is right: 0.50, 0.55 ... 0.95."""
# As numpy rounds them, since the reference compares with these very numbers: its 0.7 is 0.7000000000000001, which a
# recall of 7 / 10 does not reach.
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
"""Ranges of the area of a mask in pixels, both ends included, as in the COCO API."""
TRUTHS = tuple(f"truths{suffix}" for suffix in AREAS)
"""Counts of true masks of a class that can be found, by the range of their area."""
WRONG, RIGHT, IGNORED = 0, 1, 2
"""What a detection counts as."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of a dataset, judged image by image.

    Attributes:
        image: Index of the image of each, `(D,)`.
        label: Its class, `(D,)`.
        score: Its confidence, floats `(D,)`.
        codes: What it counts as in each range of areas and at each threshold, uint8 `(D, A, T)`; Cityscapes has one
            range, COCO all of `AREAS`.
        rules: Whose rules judged it.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    codes: np.ndarray
    rules: AveragePrecisionRules

    def of_images(self, start: int) -> Detections:
        """Count images from `start` on."""
        return replace(self, image=self.image + start)

    @classmethod
    def join(cls, parts: Sequence[Detections]) -> Detections | None:
        """Put several together, None where there are none."""
        if not parts:
            return None
        return cls(
            np.concatenate([part.image for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.score for part in parts]),
            np.concatenate([part.codes for part in parts]),
            parts[0].rules,
        )


class AveragePrecision:
    """Average precision of any draws of the images of a dataset.

    An image that is drawn k times counts as k images of equal content. Precision is needed only where a detection is
    right, so the weights of the others are summed from one right detection to the next.

    Args:
        detections: Of all images.
        num_images: N.
        num_classes: C.
    """

    def __init__(self, detections: Detections, num_images: int, num_classes: int) -> None:
        self.rules = detections.rules
        self.shape = (detections.codes.shape[1], num_classes, NUM_THRESHOLDS)
        order = _order(detections)
        ends = np.bincount(detections.label, minlength=num_classes).cumsum()
        self._curves = [
            curve
            for label, rows in enumerate(np.split(order, ends[:-1]))
            for area in range(self.shape[0])
            if (curve := _Curve.of(detections, rows, area, label, num_images)) is not None
        ]

    def __call__(self, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """Build the precision curves.

        Args:
            weights: How often each image is in each draw, float64 `(R, N)`.
            truths: True masks that count in each draw, `(R, A, C)`.

        Returns:
            Average precision at each threshold, float64 `(R, A, C, T)`; NaN where the truth of a draw lacks the class.
        """
        precision = np.zeros((len(weights), *self.shape))
        precision[truths == 0] = np.nan
        average = _of_envelope if self.rules == "coco" else _of_trapezoids
        for curve in self._curves:
            number = truths[:, curve.area, curve.label]
            drawn = np.flatnonzero(number)
            if len(drawn):
                found = average(curve, weights[drawn], number[drawn, None, None])
                precision[drawn, curve.area, curve.label] = found
        return precision


@dataclass(frozen=True, eq=False)
class _Curve:
    """Detections of one class in one range of areas, by their E events: where one is right at some threshold.

    Sparse matrices give the sums of each draw from its weights `(R, N)`.

    Attributes:
        area: Index of the range.
        label: The class.
        events: E.
        right: Right ones of each event, `(N, E T)`.
        wrong: Those wrong at all thresholds, from the event before on, `(N, E)`.
        partly_wrong: Those wrong at some, likewise `(N, E T)`.
        wrong_inside: Of both, those of the event's own score, `(N, E T)`.
    """

    area: int
    label: int
    events: int
    right: csr_array
    wrong: csr_array
    partly_wrong: csr_array
    wrong_inside: csr_array

    @classmethod
    def of(cls, detections: Detections, rows: np.ndarray, area: int, label: int, num_images: int) -> _Curve | None:
        """Sum up between events; None where there is none.

        Args:
            detections: Of all classes.
            rows: Those of the class in the order of the curve.
            area: Index of the range of areas.
            label: The class.
            num_images: N.
        """
        from scipy.sparse import csr_array  # half of the time that a table without intervals takes

        codes, image = detections.codes[rows, area], detections.image[rows]
        right, wrong = codes == RIGHT, codes == WRONG
        if not right.any():
            return None
        # One point of the curve is a detection; for Cityscapes all of equal score.
        point = np.arange(len(rows))
        if detections.rules == "cityscapes":
            score = detections.score[rows]
            point = np.cumsum(np.append(False, score[1:] != score[:-1]))
        is_event = np.bincount(point, right.any(axis=1)) > 0
        numbers: np.ndarray = np.cumsum(is_event) - is_event
        event, inside = numbers[point], is_event[point]
        events = int(is_event.sum())
        before_last = np.less(event, events)

        def by_threshold(chosen: np.ndarray) -> csr_array:
            row, threshold = np.nonzero(chosen & before_last[:, None])
            places = (image[row], event[row] * NUM_THRESHOLDS + threshold)
            return csr_array((np.ones(len(row)), places), (num_images, events * NUM_THRESHOLDS))

        everywhere = wrong.all(axis=1)
        kept = everywhere & before_last
        common = csr_array((np.ones(kept.sum()), (image[kept], event[kept])), (num_images, events))
        partly = by_threshold(wrong & ~everywhere[:, None])
        return cls(area, label, events, by_threshold(right), common, partly, by_threshold(wrong & inside[:, None]))

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right ones of each event, wrong ones up to its end, and those of its own score: `(R, E, T)` each."""
        shape = (len(weights), self.events, NUM_THRESHOLDS)
        wrong = (weights @ self.partly_wrong).reshape(shape) + (weights @ self.wrong)[..., None]
        inside = (weights @ self.wrong_inside).reshape(shape)
        return (weights @ self.right).reshape(shape), wrong.cumsum(axis=1), inside


def _of_envelope(curve: _Curve, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Precision at 101 recalls from its envelope, by the rules of COCO: `(R, T)`."""
    right, wrong, _ = curve.counts(weights)
    found = right.cumsum(axis=1)
    precision = found / np.maximum(found + wrong, 1)
    # The envelope: the best precision at this recall or beyond.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, found / truths, side="right")
    return (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)


def _of_trapezoids(curve: _Curve, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Area below the straight lines between points, from precision 1 at recall 0, by those of Cityscapes: `(R, T)`."""
    right, wrong, inside = curve.counts(weights)
    found = right.cumsum(axis=1)
    found_before, wrong_before = found - right, wrong - inside
    before = np.nan_to_num(divide(found_before, found_before + wrong_before), nan=1.0)
    after = np.nan_to_num(divide(found, found + wrong))
    return (right / truths * (before + after) / 2).sum(axis=1)


def _order(detections: Detections) -> np.ndarray:
    """By class, descending score, and for equal ones how they matched, so that the order of images is none."""
    digits = 3 ** np.arange(NUM_THRESHOLDS - 1, -1, -1)
    matches = [codes @ digits for codes in detections.codes.swapaxes(0, 1)]
    return np.lexsort((*reversed(matches), -detections.score, detections.label))


def precision_scores(precision: np.ndarray, seen: Sequence[bool] | None = None) -> dict[str, np.ndarray]:
    """Average precision over classes and thresholds; what the scores are is said by `ovsl.metrics`.

    Args:
        precision: See `AveragePrecision`, `(..., A, C, T)`.
        seen: Whether each class was seen in training.

    Returns:
        float64, NaN where undefined: the `scalars` of the metric, `(...)`, and `ap` of each class, `(..., C)`.
    """
    ap = precision.mean(axis=-1)
    scores = {f"AP{suffix}": mean(ap[..., area, :]) for area, suffix in enumerate(AREAS) if area < ap.shape[-2]}
    scores |= {f"AP{50 + 5 * index}": mean(precision[..., 0, :, index]) for index in (0, 5)}
    return scores | seen_and_unseen(ap[..., 0, :], seen, ("AP_seen", "AP_unseen", "hAP")) | {"ap": ap[..., 0, :]}
