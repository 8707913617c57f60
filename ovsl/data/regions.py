"""Maps of class-agnostic regions beside evaluation images, for methods that go by them (CorrCLIP).

A map has the size of the image: 0 where no region is, 1.. for regions. A source may have maps of its own in a column;
what is here brings them from elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np

from ovsl.data.sources import Row, decode_pixels
from ovsl.errors import InputError


class RegionMaps(ABC):
    """Where the region map of an image comes from."""

    @abstractmethod
    def __call__(self, row: Row) -> np.ndarray:
        """Find the map of a row.

        Returns:
            Integers `(H, W)`.

        Raises:
            InputError: There is none, or it does not fit the image.
        """

    def of(self, dataset: str) -> RegionMaps:
        """Give the maps of one dataset, where they depend on its name."""
        return self


class RegionFolder(RegionMaps):
    """A folder with a picture `ID.png` for every image.

    Grey pictures, 8 or 16 bits, hold the numbers themselves; coloured ones hold R + 256 G + 65536 B, as COCO's panoptic
    maps do.

    Args:
        folder: The folder; an image whose id has slashes has its picture in a sub-folder. `{dataset}` in it stands for
            the name of the dataset that is evaluated.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def of(self, dataset: str) -> RegionFolder:
        """See `RegionMaps.of`."""
        return RegionFolder(self.folder.replace("{dataset}", dataset))

    def __call__(self, row: Row) -> np.ndarray:
        """See `RegionMaps`."""
        file = Path(self.folder).expanduser() / f"{row.id}.png"
        if not file.is_file():
            raise InputError(f"There is no region map '{file}': make one for every image, or name another folder.")
        return region_map(file.read_bytes(), row.image.shape[:2], f"region map '{file}'")


class SegmentRegions(RegionMaps):
    """The segments of the panoptic ground truth, their classes left out: what a perfect maker of masks would give."""

    def __call__(self, row: Row) -> np.ndarray:
        """See `RegionMaps`."""
        if row.segments is None:
            raise InputError(f"There is no panoptic map in '{row.id}' to take regions from: set panoptic_column.")
        return renumbered(row.segments.ids)


class ColorRegions(RegionMaps):
    """Connected areas of like colours, for worlds as plain as the toy's.

    Args:
        num_colors: Colours that the image is reduced to.
        min_pixels: Smaller areas are covered by no region.
    """

    def __init__(self, num_colors: int = 6, min_pixels: int = 64) -> None:
        self.num_colors = num_colors
        self.min_pixels = min_pixels

    def __call__(self, row: Row) -> np.ndarray:
        """See `RegionMaps`."""
        smooth = cv2.medianBlur(row.image, 7)
        pixels = smooth.reshape(-1, 3).astype(np.float32)
        cv2.setRNGSeed(0)
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
        _, colors, _ = cv2.kmeans(pixels, self.num_colors, np.empty(0), stop, 1, cv2.KMEANS_PP_CENTERS)
        nearest = colors.reshape(smooth.shape[:2])
        regions = np.zeros(smooth.shape[:2], np.int64)
        for color in range(self.num_colors):
            _, areas = cv2.connectedComponents((nearest == color).astype(np.uint8), connectivity=4)
            large = np.bincount(areas.ravel())[areas] >= self.min_pixels
            regions = np.where((areas > 0) & large, areas + regions.max(), regions)
        return renumbered(regions)


def region_map(encoded: object, size: tuple[int, ...], what: str) -> np.ndarray:
    """Decode the picture of a region map.

    Args:
        encoded: As for `decode_image`.
        size: `(H, W)` of the image.
        what: How messages call it.

    Returns:
        int32 `(H, W)`, regions counted from 1 in the order of their numbers, 0 where there is none.

    Raises:
        InputError: It cannot be decoded, or has another size than the image.
    """
    picture = decode_pixels(encoded, what)
    if picture.ndim == 3:
        picture = picture[..., :3].astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    if picture.shape != tuple(size):
        raise InputError(
            f"The {what} is {picture.shape[1]}x{picture.shape[0]}, but its image {size[1]}x{size[0]}: make it anew."
        )
    return renumbered(picture)


def renumbered(regions: np.ndarray) -> np.ndarray:
    """Count regions from 1 in the order of their numbers, int32; 0 stays 0."""
    values, numbers = np.unique(regions, return_inverse=True)
    return (numbers.reshape(regions.shape) + int(values[0] != 0)).astype(np.int32)
