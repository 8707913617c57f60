"""Intervals over images: the bootstrap of Efron (*Bootstrap Methods: Another Look at the Jackknife*, 1979).

The images of a dataset are drawn again with replacement, a thousand times, and the scores of each draw computed from
the counts that its images add up to. An interval holds the middle 95 % of them, corrected for bias (Efron, *Better
Bootstrap Confidence Intervals*, 1987): a draw lacks some rare classes, which moves means over classes. It says how much
a score would move had other images of the same kind been taken, and nothing about seeds or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import NormalDist

import numpy as np

from ovsl.detections import TRUTHS, AveragePrecision
from ovsl.results.image_counts import ImageCounts

SAMPLES = 1000
LEVEL = 0.95

Interval = tuple[float, float]
Score = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Scores `(R,)` by name, from sums over images `(R, C)` by the names of the columns, and `PRECISION` where it is."""
PRECISION = "average_precision"
"""What `ovsl.detections.AveragePrecision` makes of the detections, `(R, A, C, T)`."""

_AT_A_TIME = 100


def intervals(counts: ImageCounts, score: Score, seed: int = 0) -> dict[str, Interval]:
    """Compute the 95 % interval of every score.

    Args:
        counts: Of the images.
        score: From sums to scores.
        seed: Of the draws.

    Returns:
        Lowest and highest by the name of the score; scores that are undefined in a draw are left out of it.
    """
    return _middle(_samples([counts], score, seed)[0], score(totals(counts)))


def differences(first: ImageCounts, second: ImageCounts, score: Score, seed: int = 0) -> dict[str, Interval]:
    """Compute the 95 % interval of `second - first` for every score, both on the same draws of images.

    Args:
        first: Of one run.
        second: Of another on the same images in the same order.
        score: From sums to scores.
        seed: Of the draws.
    """
    before, after = _samples([first, second], score, seed)
    estimates = [score(totals(counts)) for counts in (first, second)]
    return _middle(
        {name: after[name] - before[name] for name in before},
        {name: estimates[1][name] - estimates[0][name] for name in before},
    )


def totals(counts: ImageCounts) -> Mapping[str, np.ndarray]:
    """Sum over all images, each once: what a `Score` takes, R is 1."""
    return _adder(counts)(np.ones((1, len(counts))))


def _samples(runs: list[ImageCounts], score: Score, seed: int) -> list[dict[str, np.ndarray]]:
    """Scores `(SAMPLES,)` of each run in the same draws."""
    parts: list[list[Mapping[str, np.ndarray]]] = [[] for _ in runs]
    adders = [_adder(counts) for counts in runs]
    for weights in _draws(len(runs[0]), seed):
        for add, found in zip(adders, parts, strict=True):
            found.append(score(add(weights)))
    return [{name: np.concatenate([part[name] for part in found]) for name in found[0]} for found in parts]


def _draws(num_images: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is in each draw, float64 `(r, N)`, some draws at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, SAMPLES, _AT_A_TIME):
        rows = min(_AT_A_TIME, SAMPLES - start)
        chosen = generator.integers(num_images, size=(rows, num_images)) + np.arange(rows)[:, None] * num_images
        yield np.bincount(chosen.ravel(), minlength=rows * num_images).reshape(rows, num_images).astype(np.float64)


def _adder(counts: ImageCounts) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """Make the function from how often each image is drawn, `(R, N)`, to what a `Score` takes."""
    from scipy.sparse import csr_array  # half of the time that a table without intervals takes

    shape = (len(counts), counts.num_classes)
    # Sums of pixels are exact in float64.
    matrices = {
        name: csr_array((values.astype(np.float64), (counts.image, counts.label)), shape)
        for name, values in counts.columns.items()
    }
    precision = None if counts.detections is None else AveragePrecision(counts.detections, *shape)

    def add(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        sums = {name: weights @ matrix for name, matrix in matrices.items()}
        if precision is not None:
            truths = np.stack([sums[name] for name in TRUTHS if name in sums], axis=1)
            sums[PRECISION] = precision(weights, truths)
        return sums

    return add


def _middle(samples: Mapping[str, np.ndarray], estimates: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Middle of the draws of each score, moved as far as their median lies off the estimate from all images."""
    normal, found = NormalDist(), {}
    for name, values in samples.items():
        defined, estimate = values[np.isfinite(values)], float(estimates[name][0])
        if not len(defined) or not np.isfinite(estimate):
            continue
        below = np.mean(defined < estimate) + np.mean(defined == estimate) / 2
        bias = normal.inv_cdf(float(np.clip(below, 1 / len(values), 1 - 1 / len(values))))
        width = normal.inv_cdf((1 + LEVEL) / 2)
        low, high = np.quantile(defined, [normal.cdf(2 * bias - width), normal.cdf(2 * bias + width)])
        found[name] = (float(low), float(high))
    return found
