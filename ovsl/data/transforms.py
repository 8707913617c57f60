"""Augmentation of training samples and resizing of evaluation images, by albumentations, on uint8 throughout."""

from dataclasses import dataclass
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np

from ovsl.errors import InputError

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


@dataclass
class TrainTransform:
    """Scale jitter, crop with padding, flip, and photometric distortion: the recipe that most methods share.

    Args:
        crop_size: Height and width of a training sample; one number for a square. Smaller images are padded at the
            right and at the bottom with ignored pixels.
        scale: Range of the random scale factor. Without ``short_side`` it applies to the image as it is.
        short_side: Length of the short side that scale factor 1 stands for, or several to draw from. None keeps the
            size of the image.
        long_side: Largest long side at scale factor 1 when ``short_side`` is given (2048 in MMSegmentation's
            ``img_scale=(2048, 512)``). None sets no limit.
        fill: Grey value of padded pixels, 0..255 (128 in Detectron2's recipes).
        flip: Probability of a horizontal flip.
        photometric: Whether to change brightness, contrast, saturation and hue at random.
        brightness: Multiply the pixels by a factor drawn from 1 - this to 1 + this; 0 for none.
        category_max_ratio: Draw the crop again, at most ten times, until it holds more than one class and no class
            covers more than this share of its labelled pixels (0.75 in MMSegmentation). None takes the first crop.
    """

    crop_size: int | tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    short_side: int | list[int] | None = None
    long_side: int | None = None
    fill: int = 0
    flip: float = 0.5
    photometric: bool = False
    brightness: float = 0.0
    category_max_ratio: float | None = None

    def __post_init__(self) -> None:
        sides = self.crop_size if isinstance(self.crop_size, tuple | list) else [self.crop_size]
        if min(sides) < 1:
            raise InputError(f"data.train_transform.crop_size is {self.crop_size}: it has to be at least 1 pixel.")

    def pipeline(self, ignore_index: int, panoptic: bool = False) -> A.Compose:
        """Build the pipeline: takes ``image`` and ``mask``; seeded per sample by its ``set_random_seed``.

        Args:
            ignore_index: Value of padded mask pixels.
            panoptic: Whether masks are ``(H, W, 2)``: classes, and segment ids, padded with 0. One array, so that no
                step can treat the two differently.

        Raises:
            InputError: A range is empty or not positive.
        """
        low, high = self.scale
        if not 0 < low <= high:
            raise InputError(f"The scale range {self.scale} is empty: give (low, high) with 0 < low <= high.")
        height, width = (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size
        steps: list[A.BasicTransform] = []
        if self.short_side is not None or (low, high) != (1.0, 1.0):
            steps.append(ScaleJitter(self.scale, self.short_side, self.long_side))
        steps.append(
            A.PadIfNeeded(
                height,
                width,
                position="top_left",
                border_mode=cv2.BORDER_CONSTANT,
                fill=self.fill,
                fill_mask=(ignore_index, 0) if panoptic else ignore_index,
            )
        )
        steps.append(
            A.RandomCrop(height, width)
            if self.category_max_ratio is None
            else CategoryCrop(height, width, self.category_max_ratio, ignore_index)
        )
        if self.flip > 0:
            steps.append(A.HorizontalFlip(p=self.flip))
        if self.photometric:
            steps.append(PhotometricDistortion())
        if self.brightness > 0:
            steps.append(A.ColorJitter((1 - self.brightness, 1 + self.brightness), (1, 1), (1, 1), (0, 0), p=1.0))
        return A.Compose(steps)


@dataclass
class EvaluationTransform:
    """Resize the image, never the mask: scores are compared at the original size.

    Args:
        short_side: Length of the short side after resizing. None keeps the size of the image.
        max_size: Largest long side after resizing; the short side gives way.
        interpolation: How pixels are interpolated.
        enlarge: Whether images that are smaller are enlarged.
        min_size: Smallest side after resizing; where it counts, it changes the aspect ratio.
    """

    short_side: int | None = None
    max_size: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "area"] = "bilinear"
    enlarge: bool = True
    min_size: int = 1

    def __post_init__(self) -> None:
        for name in ("short_side", "max_size", "min_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} of an evaluation_transform is {value}: it has to be at least 1 pixel.")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize an image, uint8 ``(H, W, 3)``, keeping its aspect ratio."""
        height, width = image.shape[:2]
        factor = 1.0 if self.short_side is None else self.short_side / min(height, width)
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(height, width))
        if not self.enlarge:
            factor = min(factor, 1.0)
        return _resize(image, factor, INTERPOLATIONS[self.interpolation], self.min_size)

    def __str__(self) -> str:
        at_most = "" if self.enlarge else "at most "
        sides = (("short side", at_most, self.short_side), ("long side", "at most ", self.max_size))
        said = [f"{name} of {limit}{value}" for name, limit, value in sides if value is not None]
        return f"a {' and a '.join(said)} pixels" if said else "their own size"


class ScaleJitter(A.DualTransform):
    """Resize by a random factor, keeping the aspect ratio; masks by nearest neighbour.

    Args:
        scale: Range of the factor.
        short_side: Length of the short side that factor 1 stands for, or several to draw from; None keeps the size of
            the image.
        long_side: Largest long side at factor 1 when ``short_side`` is given.
        p: Probability of applying it.
    """

    def __init__(
        self,
        scale: tuple[float, float],
        short_side: int | list[int] | None = None,
        long_side: int | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.scale = scale
        self.short_side = short_side
        self.long_side = long_side

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factor."""
        height, width = params["shape"][:2]
        factor = self.py_random.uniform(*self.scale)
        if self.short_side is not None:
            short_side = self.short_side if isinstance(self.short_side, int) else self.py_random.choice(self.short_side)
            base = short_side / min(height, width)
            if self.long_side is not None:
                base = min(base, self.long_side / max(height, width))
            factor *= base
        return {"factor": factor}

    def apply(self, img: np.ndarray, factor: float, **params: Any) -> np.ndarray:
        """Resize the image."""
        return _resize(img, factor, cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: np.ndarray, factor: float, **params: Any) -> np.ndarray:
        """Resize the mask."""
        return _resize(mask, factor, cv2.INTER_NEAREST)


class CategoryCrop(A.RandomCrop):
    """Random crop that is drawn again while one class dominates it (``cat_max_ratio`` of MMSegmentation).

    Args:
        height: Height of the crop.
        width: Width of the crop.
        max_ratio: Largest share of one class among the labelled pixels.
        ignore_index: Mask value that does not count.
        p: Probability of applying it.
    """

    def __init__(self, height: int, width: int, max_ratio: float, ignore_index: int, p: float = 1.0) -> None:
        super().__init__(height, width, p=p)
        self.max_ratio = max_ratio
        self.ignore_index = ignore_index

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window, at most ten times more."""
        drawn = super().get_params_dependent_on_data(params, data)
        mask = data["mask"] if data["mask"].ndim == 2 else data["mask"][..., 0]
        for _ in range(10):
            left, top, right, bottom = drawn["crop_coords"]
            counts = np.bincount(mask[top:bottom, left:right].ravel(), minlength=self.ignore_index + 1)
            counts[self.ignore_index] = 0
            if np.count_nonzero(counts) > 1 and counts.max() < self.max_ratio * counts.sum():
                break
            drawn = super().get_params_dependent_on_data(params, data)
        return drawn


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
        """Distort an RGB image, uint8 ``(H, W, 3)``."""
        first, last = (contrast, 1.0) if contrast_first else (1.0, contrast)
        levels = np.arange(256, dtype=np.float32)
        # Each step saturates at 0 and 255, as in the reference.
        table = np.clip(np.clip(levels + brightness, 0, 255) * first, 0, 255).astype(np.uint8)
        img = cv2.LUT(img, table)
        if saturation != 1.0 or hue:
            hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
            hues = ((levels + hue) % 180).astype(np.uint8)
            saturations = np.clip(levels * saturation, 0, 255).astype(np.uint8)
            img = cv2.cvtColor(
                cv2.LUT(hsv, np.stack([hues, saturations, levels.astype(np.uint8)], axis=-1)[None]), cv2.COLOR_HSV2RGB
            )
        return cv2.LUT(img, np.clip(levels * last, 0, 255).astype(np.uint8)) if last != 1.0 else img


def _resize(image: np.ndarray, factor: float, interpolation: int, min_size: int = 1) -> np.ndarray:
    """Resize by a factor, to the nearest whole number of pixels (halves go up, as in MMCV and detectron2).

    No side gets below `min_size`.
    """
    height, width = image.shape[:2]
    size = (max(min_size, int(width * factor + 0.5)), max(min_size, int(height * factor + 0.5)))
    return image if size == (width, height) else cv2.resize(image, size, interpolation=interpolation)
