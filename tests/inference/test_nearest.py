from __future__ import annotations

import cv2
import numpy as np
import torch

from ovsl.inference import DensePrediction, NearestLabels
from ovsl.inference.nearest import enlarge


def test_labels_are_enlarged_as_opencv_does_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width, wanted_height, wanted_width = (int(side) for side in rng.integers(1, 300, 4))
        labels = rng.integers(0, 200, (height, width), dtype=np.uint8)
        expected = cv2.resize(labels, (wanted_width, wanted_height), interpolation=cv2.INTER_NEAREST)
        found = enlarge(torch.from_numpy(labels)[None], (wanted_height, wanted_width))[0]
        np.testing.assert_array_equal(found.numpy(), expected.reshape(wanted_height, wanted_width))


def test_decides_at_the_size_of_the_scores():
    """Between two classes lies no third, however its scores lie after interpolation."""
    scores = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.9, 0.9]]]])
    labels = NearestLabels().labels(lambda _: DensePrediction(scores), torch.zeros(1, 3, 8, 8), (1, 8))
    assert labels.tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]]]
