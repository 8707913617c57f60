"""What a source of samples is, what its label values mean, and image files as a source.

A source is a list of rows that are read one by one; it knows nothing of batches, processes or vocabularies.
Constructors only store their arguments: files and repositories are opened when a row or the length is asked for.
"""

from __future__ import annotations

import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from ovsl.data.order import row_order
from ovsl.data.plain_files import plain_grey_png, plain_jpeg
from ovsl.errors import InputError

logger = logging.getLogger(__name__)

LabelTransform = Literal["identity", "reduce_zero_label"] | int | list[int] | dict[int, int]

# Mask values are looked up in a table: 16 bits hold every published label space.
LABEL_VALUES = 1 << 16

# Pixels of the largest image or mask that is decoded: 400 MB as RGB.
LARGEST_IMAGE = 1 << 27

INVALID_LABEL = -1


class UndecodableImageError(InputError):
    """An image or mask whose bytes cannot be decoded."""


@dataclass(frozen=True)
class Segments:
    """Segments of one image that do not overlap: its panoptic ground truth.

    Attributes:
        ids: Integers `(H, W)`: 0 where there is no segment, else 1..N.
        classes: Label value of segments 1..N, as stored in the file, int64 `(N,)`.
        crowd: Whether each is a region of uncounted things, bool `(N,)`.
    """

    ids: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    def renumber(self, numbers: np.ndarray) -> Segments:
        """Leave segments out or merge them.

        Args:
            numbers: New number of segments 1..N, `(N,)`: 0 leaves one out, equal numbers merge. The numbers in use
                are 1..M; a merged segment has the class of the first of its parts.
        """
        _, first = np.unique(numbers, return_index=True)
        first = first[numbers[first] > 0]
        lookup = np.concatenate([[0], numbers]).astype(np.uint16)
        return Segments(lookup[self.ids], self.classes[first], self.crowd[first])


@dataclass(frozen=True)
class InstanceTruth:
    """True masks of the things in one image, which may overlap.

    Attributes:
        masks: bool `(N, H, W)`.
        classes: Label value of each, as stored in the file, int64 `(N,)`.
        crowd: Whether each is a region of uncounted things, bool `(N,)`.
    """

    masks: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class Row:
    """One image of a source.

    Attributes:
        id: Stable name of the image.
        image: RGB, uint8 `(H, W, 3)`.
        semantic: Label values as stored in the file, any integer type `(H, W)`; None where a source has no labels.
        path: File the image came from, where there is one.
        segments: Panoptic ground truth; None where a source gives none.
        regions: Class-agnostic regions, integers `(H, W)`, 0 for none; None where a source gives none, see
            `regions`.
        instances: Ground truth of mask AP, where it is another than the things among the segments.
    """

    id: str
    image: np.ndarray
    semantic: np.ndarray | None
    path: str | None = None
    segments: Segments | None = None
    regions: np.ndarray | None = None
    instances: InstanceTruth | None = None


class Source(ABC):
    """Rows of images with label masks.

    Attributes:
        name: How messages call this source.
        label_transform: What the label values of the files mean, see `label_table`.
        ignore_index: Label value of the files that stands for "no label".
        panoptic: Whether rows have segments.
        has_instances: Whether rows have instances.
    """

    name: str
    label_transform: LabelTransform = "identity"
    ignore_index: int = 255
    panoptic: bool = False
    has_instances: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Count the rows."""

    @abstractmethod
    def row(self, index: int) -> Row:
        """Read one row.

        Args:
            index: Row number, `0 <= index < len(self)`.

        Raises:
            InputError: The row cannot be used.
        """

    def columns(self) -> dict[str, str]:
        """Name and type of each column of the files, read or not; empty where the data is no table."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """Say what data this is, so that a run is not continued on other data: plain types, equal for equal data."""
        return {"rows": len(self)}

    def pin(self, fingerprint: Mapping[str, Any]) -> None:  # noqa: B027 - most sources have one version only
        """Read the data that a fingerprint was taken of, where several versions can be had; before all else."""

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Order of the rows in one training epoch, int64 `(len(self),)`: a pure function of its arguments."""
        return row_order(len(self), seed, epoch)

    def portrait(self) -> np.ndarray:
        """Whether each image is no wider than high, bool `(len(self),)`.

        Raises:
            InputError: The source does not know without reading the images.
        """
        raise InputError(f"{self.name} does not tell the sizes of its images: set group_by_orientation to false.")


def label_table(transform: LabelTransform, source_ignore_index: int, num_classes: int, ignore_index: int) -> np.ndarray:
    """Table from the label values of a source to class indices.

    Args:
        transform: `identity`; `reduce_zero_label` (0 is ignored, then every value is lowered by one, as ADE20K
            needs); an integer that is added to every value; a list with the class index of value 0, 1, ...; or a
            dictionary from value to class index that ignores what it does not list.
        source_ignore_index: Value of the files (and of lists and dictionaries) that stands for "no label".
        num_classes: Number of classes; other results are invalid.
        ignore_index: What ignored values become.

    Returns:
        int32 `(65536,)`: class index, `ignore_index`, or `INVALID_LABEL`.
    """
    values = np.arange(LABEL_VALUES)
    ignored = values == source_ignore_index
    match transform:
        case "identity":
            classes = values
        case "reduce_zero_label":
            classes, ignored = values - 1, ignored | (values == 0)
        case int():
            classes = values + transform
        case list():
            classes = np.full(LABEL_VALUES, INVALID_LABEL)
            classes[: len(transform)] = transform
            ignored = ignored | (classes == source_ignore_index)
        case dict():
            classes = np.full(LABEL_VALUES, source_ignore_index)
            classes[list(transform)] = list(transform.values())
            ignored = classes == source_ignore_index
        case _:
            raise InputError(
                f"Unknown label_transform {transform!r}: use identity, reduce_zero_label, "
                "an offset, a list or a dictionary."
            )
    valid = (classes >= 0) & (classes < num_classes)
    return np.where(ignored, ignore_index, np.where(valid, classes, INVALID_LABEL)).astype(np.int32)


def classes_of(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Map label values of any size by a table.

    Args:
        values: Label values, integers, any shape.
        table: See `label_table`.

    Returns:
        int32 of the same shape; `INVALID_LABEL` also for values that no table has.
    """
    known = (values >= 0) & (values < LABEL_VALUES)
    return np.where(known, table[np.where(known, values, 0)], INVALID_LABEL).astype(table.dtype)


class ImageFiles(Source):
    """Image files without labels.

    Args:
        files: The files.
        ids: Name of each.
    """

    def __init__(self, files: Sequence[Path], ids: Sequence[str]) -> None:
        self.files = list(files)
        self.ids = list(ids)
        self.name = "image files"

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> Row:
        """Read one file; see `Source`."""
        file = self.files[index]
        image = decode_pixels(file.read_bytes(), f"image '{file}'", mode="RGB", upright=True)
        return Row(self.ids[index], image, None, str(file))


def decode_pixels(value: Any, what: str, mode: Literal["RGB"] | None = None, upright: bool = False) -> np.ndarray:
    """Decode an image cell as `decode_image` does, to its pixels; plain files in a faster way.

    Returns:
        uint8 `(H, W, 3)` for photos; masks with the stored pixels, `(H, W)` unless they are coloured.
    """
    encoded = value.get("bytes") if isinstance(value, dict) else value
    plain = None
    if isinstance(encoded, bytes) and not upright:
        plain = (plain_jpeg if mode == "RGB" else plain_grey_png)(encoded, LARGEST_IMAGE)
    return np.asarray(decode_image(value, what, mode, upright)) if plain is None else plain


def decode_image(value: Any, what: str, mode: Literal["RGB"] | None = None, upright: bool = False) -> Image.Image:
    """Decode an image cell: bytes, or the `{"bytes", "path"}` of the Image feature.

    Args:
        value: The cell.
        what: What messages call it.
        mode: `RGB` for photos, see `as_rgb`; None for masks, whose stored pixels are left alone.
        upright: Whether to turn a photo as its EXIF entry says. Images with masks stay as stored, since masks match the
            stored pixels.

    Raises:
        UndecodableImageError: Not an image, a broken one, one of more than `LARGEST_IMAGE` pixels, or a photo whose
            pixels have no meaning in RGB.
    """
    encoded = value.get("bytes") if isinstance(value, dict) else value
    try:
        if not encoded:
            raise ValueError("no bytes")
        with warnings.catch_warnings():
            # Below the limit at which Pillow refuses it only warns, and phones take such photos.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded))
            # A few bytes can name any size: it is looked at before anything is decoded.
            if image.width * image.height > LARGEST_IMAGE:
                raise ValueError(f"{image.width}x{image.height} pixels are more than {LARGEST_IMAGE}")
            image.load()
        return as_rgb(image, what, upright) if mode == "RGB" else image
    except (UndecodableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on broken files
        raise UndecodableImageError(
            f"Cannot decode the {what} ({one_line(error)}): repair or remove it, or set --data.on_error skip."
        ) from error


def as_rgb(image: Image.Image, what: str, upright: bool = False) -> Image.Image:
    """Bring a photo to 8-bit RGB, by one policy for all that Pillow opens.

    16 bits are scaled to 8; grey, palette, CMYK and other colour spaces are converted; what is transparent lies on
    white; of an animation the first frame counts, and a warning says so.

    Args:
        image: The opened image.
        what: What messages call it.
        upright: Whether to turn it as its EXIF entry says.

    Raises:
        UndecodableImageError: Floating-point or 32-bit pixels, whose range nobody knows.
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # phones put a second picture of the scene there
        logger.warning("The %s has %d frames; only the first is used.", what, image.n_frames)  # type: ignore[attr-defined]
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() >= 0 and values.max() <= 65535:
            return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UndecodableImageError(f"The {what} has pixels of 32 bits: save it with 8 or 16 bits a channel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
