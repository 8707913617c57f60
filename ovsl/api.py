"""The first line of a notebook: a method with its words, asked about any photo, without a trainer.

`ovsl.load("runs/mine").with_words(["road", "sky", "car, automobile"])("photo.jpg")`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovsl.data import EvaluationTransform
from ovsl.data.regions import RegionMaps
from ovsl.data.sources import Row, as_rgb, decode_image
from ovsl.errors import InputError
from ovsl.evaluation import Segmenter
from ovsl.inference import PanopticMap, Segmentation
from ovsl.methods.base import SegmentationModule
from ovsl.results.drawing import overlay
from ovsl.tools.models import load_model
from ovsl.vocabulary import Vocabulary, as_vocabulary

Photo = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, an array uint8 `(H, W, 3)` or `(H, W)`, or a tensor uint8 `(3, H, W)`."""


@dataclass(frozen=True)
class PhotoSegmentation:
    """What was found in a photo.

    Attributes:
        photo: RGB uint8 `(H, W, 3)`.
        labels: Index of the word of every pixel, int64 `(H, W)`.
        vocabulary: The words.
        panoptic: Segments, on the CPU, where the method predicts masks; else None.
    """

    photo: np.ndarray
    labels: np.ndarray
    vocabulary: Vocabulary
    panoptic: PanopticMap | None = None

    def shares(self) -> dict[str, float]:
        """Share of the photo of each word, in 0..1, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.vocabulary)) / self.labels.size
        order = np.argsort(-counts, kind="stable")
        return {self.vocabulary.classes[index]: float(counts[index]) for index in order}

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Blend the labels over the photo, borders in black.

        Args:
            opacity: Of the colours, 0..1.
        """
        return Image.fromarray(overlay(self.photo, self.labels, self.vocabulary, opacity))


class PhotoSegmenter:
    """A method with its words, for photos in any form.

    Args:
        module: The method, with its weights.
        words: See `ovsl.vocabulary.as_vocabulary`.
        short_side: Size that photos are resized to for the network; None takes that of the method's published tests,
            and enlarges no photo.
        regions: Makes the region map of a photo, for methods that go by one.
    """

    def __init__(
        self,
        module: SegmentationModule,
        words: Vocabulary | Sequence[str] | str,
        short_side: int | None = None,
        regions: RegionMaps | None = None,
    ) -> None:
        self.module = module
        self.regions = regions
        self.short_side = short_side
        self.transform = module.photo_transform if short_side is None else EvaluationTransform(short_side=short_side)
        vocabulary = as_vocabulary(words)
        module.use_own_words()
        with torch.inference_mode():
            self.segmenter: Segmenter = module.segmenter(vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        """The words, with their seen marks."""
        return self.segmenter.vocabulary

    def with_words(self, words: Vocabulary | Sequence[str] | str) -> PhotoSegmenter:
        """Ask the same method with other words; nothing is loaded again."""
        return PhotoSegmenter(self.module, words, self.short_side, self.regions)

    # A string is a sequence of strings, too; the first that fits counts.
    @overload
    def __call__(self, photos: Photo) -> PhotoSegmentation: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, photos: Sequence[Photo]) -> list[PhotoSegmentation]: ...

    def __call__(self, photos: Photo | Sequence[Photo]) -> PhotoSegmentation | list[PhotoSegmentation]:
        """Segment one photo or several, of any sizes; answers have the size of the photo.

        Args:
            photos: A photo, or a list of them.

        Raises:
            InputError: Something that is no photo, or cannot be read.
        """
        if isinstance(photos, str | Path | Image.Image | np.ndarray | Tensor):
            return self._segment(photos)
        return [self._segment(photo) for photo in photos]

    @torch.inference_mode()
    def _segment(self, photo: Photo) -> PhotoSegmentation:
        array = as_array(photo)
        image = torch.from_numpy(np.ascontiguousarray(self.transform(array).transpose(2, 0, 1)))
        height, width = array.shape[:2]
        found: Segmentation
        device, regions = self.module.device, None
        if self.regions is not None:
            regions = [torch.from_numpy(self.regions(Row("photo", array, None)).astype(np.int32)).to(device)]
        (found,) = self.segmenter.photos([image.to(device)], [(height, width)], regions)
        panoptic = found.panoptic and PanopticMap(found.panoptic.segment_ids.cpu(), found.panoptic.classes.cpu())
        return PhotoSegmentation(array, found.labels.cpu().numpy(), self.vocabulary, panoptic)


class LoadedMethod:
    """A method with its weights, waiting for words.

    Args:
        module: The method.
    """

    def __init__(self, module: SegmentationModule) -> None:
        self.module = module.eval()

    def with_words(
        self,
        words: Vocabulary | Sequence[str] | str,
        short_side: int | None = None,
        regions: RegionMaps | None = None,
    ) -> PhotoSegmenter:
        """Bind words; as often as wanted.

        Args:
            words: A list with one entry per class, synonyms separated by commas; the name of a shipped vocabulary; or
                a text, JSON or CSV file, see `ovsl.vocabulary.as_vocabulary`.
            short_side: Size that photos are resized to for the network; None takes that of the method's published
                tests, and enlarges no photo.
            regions: Makes the region map of a photo, for methods that go by one (CorrCLIP).
        """
        return PhotoSegmenter(self.module, words, short_side, regions)

    def to(self, device: str | torch.device | None = None) -> LoadedMethod:
        """Move to a device; None takes a GPU if there is one."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.module.to(device)
        return self


def load(source: str | Path, device: str | torch.device | None = None) -> LoadedMethod:
    """Load a method.

    Args:
        source: A run directory, a checkpoint file, or a method's configuration file (training-free methods).
        device: Where it runs; None takes a GPU if there is one.

    Raises:
        InputError: Nothing of that kind, or a trained method without weights.
    """
    return LoadedMethod(load_model(source)).to(device)


def as_array(photo: Photo) -> np.ndarray:
    """Bring a photo to RGB uint8 `(H, W, 3)`.

    Raises:
        InputError: Something else than a photo.
    """
    if isinstance(photo, str | Path):
        path = Path(photo).expanduser()
        if not path.is_file():
            raise InputError(f"There is no photo '{path}'.")
        return np.asarray(decode_image(path.read_bytes(), f"image '{path}'", mode="RGB", upright=True))
    if isinstance(photo, Image.Image):
        return np.asarray(as_rgb(photo, "photo", upright=True))
    array = photo.permute(1, 2, 0).cpu().numpy() if isinstance(photo, Tensor) and photo.ndim == 3 else np.asarray(photo)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            f"A photo as {type(photo).__name__} has to be uint8 RGB, (H, W, 3) as an array and (3, H, W) as a tensor; "
            f"this one is {array.dtype} of shape {tuple(photo.shape)}."
        )
    return array
