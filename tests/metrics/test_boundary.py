"""Boundary IoU against an erosion of every class for itself, and by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from ovsl.metrics.boundary import boundary_counts, near_contour

IGNORE = 255


def eroded_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Take from a mask what an erosion by 3 x 3 leaves after `width` steps, with background beyond the border."""
    padded = np.pad(mask.astype(np.uint8), 1)
    left = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (left == 0)


def maps(seed: int, size: tuple[int, int] = (60, 80)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 4, (2, 6, 8)).repeat(10, axis=1).repeat(10, axis=2)
    target = small[0].copy()
    target[generator.random(size) < 0.02] = IGNORE
    prediction = np.where(generator.random(size) < 0.9, small[0], small[1])
    return torch.from_numpy(prediction), torch.from_numpy(target)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_band_is_what_an_erosion_removes(width: int) -> None:
    _, target = maps(0)
    band = near_contour(target, width).numpy()
    for label in (0, 1, 2, 3, IGNORE):
        mask = target.numpy() == label
        np.testing.assert_array_equal(band & mask, eroded_band(mask, width), err_msg=str(label))


def test_counts_are_those_of_every_class_for_itself() -> None:
    prediction, target = maps(1)
    found = boundary_counts(prediction, target, 4, IGNORE)
    width = round(0.02 * 100)  # the diagonal of 60 x 80
    kept = target.numpy() != IGNORE
    for label in range(4):
        true = eroded_band(target.numpy() == label, width)
        called = eroded_band((prediction.numpy() == label) & kept, width)
        expected = [(true & called).sum(), called.sum(), true.sum()]
        assert [int(each[label]) for each in found] == expected


def test_a_shifted_edge_by_hand() -> None:
    """Two halves of a 6 x 8 image (diagonal 10, so a band of one pixel); the edge is one column too far right."""
    target = torch.zeros(6, 8, dtype=torch.int64)
    target[:, 4:] = 1
    prediction = torch.zeros_like(target)
    prediction[:, 5:] = 1
    intersection, called, true = boundary_counts(prediction, target, 2, IGNORE)
    # Rings of rectangles 6 high: 4 wide has 6 * 4 - 4 * 2 = 16 pixels, 5 wide 6 * 5 - 4 * 3 = 18, 3 wide 18 - 4 = 14.
    assert called.tolist() == [18, 14]
    assert true.tolist() == [16, 16]
    # Of class 0 columns 0..3 are common: left column 6, and top and bottom of columns 1..3. Of class 1 columns 5..7.
    assert intersection.tolist() == [6 + 2 * 3, 6 + 2 * 2]
