from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ovsl.layers.pillow_resize import resize_square

SIDES = [(256, 224), (128, 224), (64, 224), (36, 24), (20, 24), (7, 7), (3, 50), (50, 3)]


@pytest.mark.parametrize(("own", "wanted"), SIDES)
def test_equals_pillow_to_the_last_bit(own, wanted):
    rng = np.random.default_rng(own)
    smooth = rng.integers(0, 256, (own, own, 3), dtype=np.uint8)
    hard = (smooth > 127).astype(np.uint8) * 255  # overshoots at every edge
    images = np.stack([smooth, hard])
    size, bicubic = (wanted, wanted), Image.Resampling.BICUBIC
    expected = np.stack([np.asarray(Image.fromarray(image).resize(size, bicubic)) for image in images])
    found = resize_square(torch.from_numpy(images).permute(0, 3, 1, 2), wanted).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(found.numpy(), expected)
