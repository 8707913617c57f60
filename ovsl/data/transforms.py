"""Augmentation of training samples and resizing of evaluation images, by albumentations, on uint8 throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np
import torch
from torch.nn import functional

from ovsl.data.photometric import PhotometricDistortion
from ovsl.errors import InputError

Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "antialiased"]
MaskInterpolation = Literal["nearest", "nearest_exact"]
"""Both take the value of one source pixel: `nearest` the one at the upper left of where the pixel falls (OpenCV,
MMSegmentation, `torch.nn.functional.interpolate`), `nearest_exact` the one whose centre is nearest (Pillow)."""

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "nearest_exact": cv2.INTER_NEAREST_EXACT,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


@dataclass
class TrainTransform:
    """Scale jitter, crop, flip, photometric distortion, and padding: the recipe that most methods share.

    Padding comes last, so that no other step changes it: it always lies at the right and at the bottom.

    Args:
        crop_size: Height and width of a training sample; one number for a square. What an image lacks is padded with
            ignored pixels.
        scale: Range of the random scale factor. Without `short_side` it applies to the image as it is.
        short_side: Length of the short side that scale factor 1 stands for, or several to draw from. None keeps the
            size of the image.
        long_side: Largest long side at scale factor 1 when `short_side` is given (2048 in MMSegmentation's
            `img_scale=(2048, 512)`). None sets no limit.
        stretch: Bring every image to `crop_size` whatever its aspect ratio, in place of scaling and cropping it.
        interpolation: How pixels are interpolated, see `resize`; Detectron2 and other code that resizes by Pillow is
            `antialiased`.
        mask_interpolation: How labels are: `nearest`, or `nearest_exact` where the masks were resized by Pillow.
        fill: Colour of padded pixels, 0..255: one grey level, or red, green and blue. MMSegmentation pads normalised
            images with 0, which is the mean colour; Detectron2's recipes with 128.
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
    stretch: bool = False
    interpolation: Interpolation = "bilinear"
    mask_interpolation: MaskInterpolation = "nearest"
    fill: int | tuple[int, int, int] = 0
    flip: float = 0.5
    photometric: bool = False
    brightness: float = 0.0
    category_max_ratio: float | None = None

    def __post_init__(self) -> None:
        sides = self.crop_size if isinstance(self.crop_size, tuple | list) else [self.crop_size]
        if min(sides) < 1:
            raise InputError(f"data.train_transform.crop_size is {self.crop_size}: it has to be at least 1 pixel.")

    def pipeline(self, ignore_index: int, panoptic: bool = False) -> A.Compose:
        """Build the pipeline: takes `image` and `mask`; seeded per sample by its `set_random_seed`.

        Args:
            ignore_index: Value of padded mask pixels.
            panoptic: Whether masks are `(H, W, 2)`: classes, and segment ids, padded with 0. One array, so that no
                step can treat the two differently.

        Raises:
            InputError: A range is empty or not positive.
        """
        low, high = self.scale
        if not 0 < low <= high:
            raise InputError(f"The scale range {self.scale} is empty: give (low, high) with 0 < low <= high.")
        height, width = (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size
        steps: list[A.BasicTransform] = []
        if self.stretch:
            steps.append(Stretch(height, width, self.interpolation, self.mask_interpolation))
        elif self.short_side is not None or (low, high) != (1.0, 1.0):
            steps.append(
                ScaleJitter(self.scale, self.short_side, self.long_side, self.interpolation, self.mask_interpolation)
            )
        steps.append(Crop(height, width, self.category_max_ratio, ignore_index))
        if self.flip > 0:
            steps.append(A.HorizontalFlip(p=self.flip))
        if self.photometric:
            steps.append(PhotometricDistortion())
        if self.brightness > 0:
            steps.append(A.ColorJitter((1 - self.brightness, 1 + self.brightness), (1, 1), (1, 1), (0, 0), p=1.0))
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
        return A.Compose(steps)


@dataclass
class EvaluationTransform:
    """Resize the image, never the mask: scores are compared at the original size.

    Args:
        short_side: Length of the short side after resizing. None keeps the size of the image.
        max_size: Largest long side after resizing; the short side gives way.
        stretch: Height and width of a square that every image is brought to instead, whatever its aspect ratio.
        interpolation: How pixels are interpolated, see `resize`; Detectron2 and other code that resizes by Pillow is
            `antialiased`.
        enlarge: Whether images that are smaller are enlarged.
        min_size: Smallest side after resizing; where it counts, it changes the aspect ratio.
    """

    short_side: int | None = None
    max_size: int | None = None
    interpolation: Interpolation = "bilinear"
    enlarge: bool = True
    min_size: int = 1
    stretch: int | None = None

    def __post_init__(self) -> None:
        for name in ("short_side", "max_size", "min_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} of an evaluation_transform is {value}: it has to be at least 1 pixel.")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize an image, uint8 `(H, W, 3)`."""
        if self.stretch is not None:
            return resize(image, (self.stretch, self.stretch), self.interpolation)
        height, width = image.shape[:2]
        factor = 1.0 if self.short_side is None else self.short_side / min(height, width)
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(height, width))
        if not self.enlarge:
            factor = min(factor, 1.0)
        return resize(image, _scaled(image, factor, self.min_size), self.interpolation)

    def __str__(self) -> str:
        at_most = "" if self.enlarge else "at most "
        sides = (("short side", at_most, self.short_side), ("long side", "at most ", self.max_size))
        said = [f"{name} of {limit}{value}" for name, limit, value in sides if value is not None]
        return f"a {' and a '.join(said)} pixels" if said else "their own size"


def resize(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation | MaskInterpolation) -> np.ndarray:
    """Resize an image or a mask.

    All but one interpolation are OpenCV's, which takes few source pixels however far an image is shrunk.
    `antialiased` is Pillow's bilinear one, which averages over all of them: computed by torch, which is several times
    faster and differs from Pillow by one grey level in few of the pixels.

    Args:
        image: `(H, W)` or `(H, W, channels)`; uint8 with three channels for `antialiased`.
        size: Height and width that are wanted.
        interpolation: How pixels are interpolated.
    """
    if size == image.shape[:2]:
        return image
    if interpolation != "antialiased":
        return cv2.resize(image, size[::-1], interpolation=INTERPOLATIONS[interpolation])
    # A view with channels last in memory, for which torch has vector instructions.
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resized = functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


class Stretch(A.DualTransform):
    """Resize to a fixed size, whatever the aspect ratio.

    Args:
        height: Height after resizing.
        width: Width after resizing.
        interpolation: How pixels are interpolated.
        mask_interpolation: How labels are.
    """

    def __init__(
        self,
        height: int,
        width: int,
        interpolation: Interpolation = "bilinear",
        mask_interpolation: MaskInterpolation = "nearest",
    ) -> None:
        super().__init__(p=1.0)
        self.height = height
        self.width = width
        self.interpolation = interpolation
        self.mask_interpolation = mask_interpolation

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Resize the image."""
        return resize(img, (self.height, self.width), self.interpolation)

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Resize the mask."""
        return resize(mask, (self.height, self.width), self.mask_interpolation)


class ScaleJitter(A.DualTransform):
    """Resize by a random factor, keeping the aspect ratio.

    Args:
        scale: Range of the factor.
        short_side: Length of the short side that factor 1 stands for, or several to draw from; None keeps the size of
            the image.
        long_side: Largest long side at factor 1 when `short_side` is given.
        interpolation: How pixels are interpolated.
        mask_interpolation: How labels are.
    """

    def __init__(
        self,
        scale: tuple[float, float],
        short_side: int | list[int] | None = None,
        long_side: int | None = None,
        interpolation: Interpolation = "bilinear",
        mask_interpolation: MaskInterpolation = "nearest",
    ) -> None:
        super().__init__(p=1.0)
        self.scale = scale
        self.short_side = short_side
        self.long_side = long_side
        self.interpolation = interpolation
        self.mask_interpolation = mask_interpolation

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
        return resize(img, _scaled(img, factor), self.interpolation)

    def apply_to_mask(self, mask: np.ndarray, factor: float, **params: Any) -> np.ndarray:
        """Resize the mask."""
        return resize(mask, _scaled(mask, factor), self.mask_interpolation)


class Crop(A.DualTransform):
    """Random window, no larger than the image, that is drawn again while one class dominates it.

    Args:
        height: Height of the window.
        width: Width of the window.
        max_ratio: Largest share of one class among the labelled pixels (`cat_max_ratio` of MMSegmentation); None takes
            the first window.
        ignore_index: Mask value that does not count.
    """

    def __init__(self, height: int, width: int, max_ratio: float | None = None, ignore_index: int = 255) -> None:
        super().__init__(p=1.0)
        self.height = height
        self.width = width
        self.max_ratio = max_ratio
        self.ignore_index = ignore_index

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window, at most ten times more."""
        height, width = params["shape"][:2]
        window = self._draw(height, width)
        if self.max_ratio is not None:
            mask = data["mask"] if data["mask"].ndim == 2 else data["mask"][..., 0]
            for _ in range(10):
                if self._mixed(mask[window], self.max_ratio):
                    break
                window = self._draw(height, width)
        return {"window": window}

    def _draw(self, height: int, width: int) -> tuple[slice, slice]:
        top = self.py_random.randint(0, max(0, height - self.height))
        left = self.py_random.randint(0, max(0, width - self.width))
        return slice(top, top + self.height), slice(left, left + self.width)

    def _mixed(self, labels: np.ndarray, max_ratio: float) -> bool:
        if labels.dtype == np.uint8 and self.ignore_index < 256:
            counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        else:
            counts = np.bincount(labels.ravel(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return bool(np.count_nonzero(counts) > 1 and counts.max() < max_ratio * counts.sum())

    def apply(self, img: np.ndarray, window: tuple[slice, slice], **params: Any) -> np.ndarray:
        """Cut the window out of the image."""
        return img[window]

    def apply_to_mask(self, mask: np.ndarray, window: tuple[slice, slice], **params: Any) -> np.ndarray:
        """Cut the window out of the mask."""
        return mask[window]


def _scaled(image: np.ndarray, factor: float, least: int = 1) -> tuple[int, int]:
    """Height and width times a factor, in whole pixels; halves go up, as in MMCV and detectron2."""
    height, width = image.shape[:2]
    return max(least, int(height * factor + 0.5)), max(least, int(width * factor + 0.5))
