"""Distinct colours for vocabularies that bring none."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Linear sRGB -> cone response and cone response -> OKLab (B. Ottosson, "A perceptual color space for image
# processing", 2020). Distances in OKLab follow what the eye sees far better than distances in RGB.
_RGB_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONES_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FIRST = (230, 60, 60)


def _oklab(rgb: NDArray[np.int64]) -> NDArray[np.float64]:
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _RGB_TO_CONES.T) @ _CONES_TO_OKLAB.T


@lru_cache
def generate_palette(num_colors: int) -> tuple[tuple[int, int, int], ...]:
    """Draw colours one by one, each as far as possible from all before it (OKLab distance).

    Deterministic; a shorter palette is a prefix of a longer one, so that a class keeps its colour when words are
    appended. Very dark and very light colours are left out, since they vanish in overlays and legends.

    Args:
        num_colors: How many; beyond about 3000, colours repeat.

    Returns:
        RGB triples, each value in 0..255.
    """
    levels = np.linspace(0, 255, 17).astype(np.int64)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    coordinates = _oklab(candidates)
    usable = (coordinates[:, 0] > 0.4) & (coordinates[:, 0] < 0.92)
    candidates, coordinates = candidates[usable], coordinates[usable]

    chosen = int(np.abs(candidates - np.array(_FIRST)).sum(axis=1).argmin())
    nearest = np.full(len(candidates), np.inf)
    colors: list[tuple[int, int, int]] = []
    for _ in range(min(num_colors, len(candidates))):
        red, green, blue = candidates[chosen].tolist()
        colors.append((red, green, blue))
        nearest = np.minimum(nearest, ((coordinates - coordinates[chosen]) ** 2).sum(axis=1))
        chosen = int(nearest.argmax())
    return tuple(colors[index % len(colors)] for index in range(num_colors))
