"""How far the best seen class leads over the best unseen one: what every offset between the two would give."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.scores import BINS, MARGIN_REACH, SMALLEST_MARGIN


def margin_counts(scores: Tensor, target: Tensor, seen: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Count pixels by their margin: the best score of a seen class minus that of an unseen one.

    Each pixel counts for both classes, that it would have below and above the offset of its margin.

    Args:
        scores: `(N, C)`.
        target: Labels or `ignore_index`, int64 `(N,)`.
        seen: bool `(C,)`, of both kinds.
        ignore_index: Target value of pixels that are not evaluated.

    Returns:
        Pixels of each class and margin, and those of them that are of that class, int64 `(C, BINS)`.
    """
    num_classes = scores.shape[1]
    labels = [each.nonzero().flatten() for each in (seen, ~seen)]
    best = [scores[:, own].max(dim=1) for own in labels]
    first, second = (own[found.indices] for own, found in zip(labels, best, strict=True))
    margin = best[0].values - best[1].values
    # Of equal scores the first class wins, seen or not.
    behind = (margin < 0) | ((margin == 0) & (second < first))
    half = BINS // 2
    step = (torch.asinh(margin.abs().float() / SMALLEST_MARGIN) * (half / MARGIN_REACH)).clamp(max=half - 1).long()
    place = torch.where(behind, half - 1 - step, half + step)
    kept = target != ignore_index
    cells, hits = [], []
    for label in (first, second):
        cell = (label * BINS + place)[kept]
        cells.append(cell)
        hits.append(cell[(label == target)[kept]])
    return tuple(  # type: ignore[return-value]
        torch.bincount(torch.cat(each), minlength=num_classes * BINS).view(num_classes, BINS) for each in (cells, hits)
    )
