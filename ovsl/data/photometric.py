"""Random changes of colour."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np


class PhotometricDistortion(A.ImageOnlyTransform):
    """Brightness, contrast, saturation and hue at random, each with probability one half (as in SSD, MMSegmentation).

    Brightness moves by up to 32 of 255, contrast and saturation are multiplied by 0.5 to 1.5, hue turns by up to 18 of
    180; contrast comes either before or after saturation and hue.

    Args:
        p: Probability of applying it.
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def get_params(self) -> dict[str, Any]:
        """Draw what is changed, and by how much."""
        draw = self.py_random
        return {
            "brightness": draw.choice([0.0, draw.uniform(-32, 32)]),
            "contrast": draw.choice([1.0, draw.uniform(0.5, 1.5)]),
            "contrast_first": draw.random() < 0.5,
            "saturation": draw.choice([1.0, draw.uniform(0.5, 1.5)]),
            "hue": draw.choice([0, draw.randint(-18, 18)]),
        }

    def apply(
        self,
        img: np.ndarray,
        brightness: float,
        contrast: float,
        contrast_first: bool,
        saturation: float,
        hue: int,
        **params: Any,
    ) -> np.ndarray:
        """Distort an RGB image, uint8 `(H, W, 3)`."""
        first, last = (contrast, 1.0) if contrast_first else (1.0, contrast)
        levels = np.arange(256, dtype=np.float32)
        # Each step saturates at 0 and 255, as in the reference.
        table = np.clip(np.clip(levels + brightness, 0, 255) * first, 0, 255).astype(np.uint8)
        after = np.clip(levels * last, 0, 255).astype(np.uint8)
        colours = saturation != 1.0 or hue
        if not colours:
            table = after[table]
        if brightness or first != 1.0 or (last != 1.0 and not colours):
            img = cv2.LUT(img, table)
        if colours:
            hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
            hues = ((levels + hue) % 180).astype(np.uint8)
            saturations = np.clip(levels * saturation, 0, 255).astype(np.uint8)
            img = cv2.cvtColor(
                cv2.LUT(hsv, np.stack([hues, saturations, levels.astype(np.uint8)], axis=-1)[None]), cv2.COLOR_HSV2RGB
            )
            img = cv2.LUT(img, after) if last != 1.0 else img
        return img
