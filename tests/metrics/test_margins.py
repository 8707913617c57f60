"""Margins between the best seen and the best unseen class, and the curve that they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovsl.metrics.margins import margin_counts
from ovsl.results.diagnosis import offset_curve
from ovsl.scores import BINS, PIXELS, margin_edges, semantic_scores

SEEN = np.array([True, False, True, False])
IGNORE = 255


def counted(scores: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    margins = torch.stack(margin_counts(scores, target, torch.from_numpy(SEEN), IGNORE)).numpy()
    return margins, np.bincount(target[target != IGNORE].numpy(), minlength=4)


def test_three_pixels_by_hand() -> None:
    """Margins 2, -1 and 0.5; the truth is class 1 twice, and class 2."""
    scores = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5], [9.0, 0.0, 0.0, 0.0]])
    margins, area = counted(scores, torch.tensor([1, 1, 2, IGNORE]))
    assert margins.sum((1, 2)).tolist() == [6, 3], "two candidates a pixel, the right one in all three"
    curve = offset_curve(margins, area, SEEN, "skip")

    def at(offset: float) -> tuple[float, float]:
        index = int(np.searchsorted(curve["offset"], offset))
        return curve["mIoU_seen"][index], curve["mIoU_unseen"][index]

    # Without an offset pixel 1 goes to class 0, which is not in the truth and is left out; the others are right.
    assert at(0.0) == (1.0, 0.5)
    # From 0.5 on the third pixel goes to class 3, from 2 on the first one to class 1.
    assert at(0.7) == (0.0, 0.5)
    assert at(2.3) == (0.0, 1.0)
    # Below -1 the second pixel goes to class 0 too.
    assert at(-1.2) == (1.0, 0.0)
    assert curve["now"] == {"offset": 0.0, "mIoU_seen": 1.0, "mIoU_unseen": 0.5, "hIoU": pytest.approx(2 / 3)}
    assert curve["best"]["hIoU"] == pytest.approx(2 / 3)
    # Unseen 0.5 is to be had with seen 1.0, more only with seen 0.
    assert curve["area_seen_unseen"] == pytest.approx(0.5)


def test_every_offset_gives_what_an_arg_max_over_shifted_scores_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, target = torch.rand(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)
    margins, area = counted(scores, target)
    curve = offset_curve(margins, area, SEEN, "skip")
    assert len(curve["offset"]) == BINS + 1
    for index in range(0, BINS + 1, 10):
        shifted = scores.double() + torch.from_numpy(np.where(SEEN, 0, margin_edges()[index]))
        labels = shifted.argmax(1).numpy()
        counts = [np.bincount(labels[labels == target.numpy()], minlength=4), np.bincount(labels, minlength=4), area]
        expected = semantic_scores(dict(zip(PIXELS, counts, strict=True)), SEEN.tolist())
        for name in ("mIoU_seen", "mIoU_unseen", "hIoU"):
            assert curve[name][index] == pytest.approx(float(expected[name]), abs=1e-3), (index, name)


def test_ties_go_to_the_first_class_and_classes_that_cannot_be_predicted_never_win() -> None:
    infinity = float("inf")
    scores = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [-infinity, 0.5, -infinity, 0.0]])
    margins, area = counted(scores, torch.tensor([0, 1, 1]))
    now = offset_curve(margins, area, SEEN, "skip")["now"]
    assert (now["mIoU_seen"], now["mIoU_unseen"]) == (1.0, 1.0)
    # Below all margins but that without end the third pixel still goes to class 1.
    assert offset_curve(margins, area, SEEN, "skip")["mIoU_unseen"][1] == 0.5
