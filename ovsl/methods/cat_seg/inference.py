"""The two ways in which the released code brings images through CAT-Seg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from open_clip import OPENAI_DATASET_MEAN
from torch import Tensor
from torch.nn import functional

from ovsl.inference import DensePrediction, Inference, Size, SlidingWindow, average_windows, resize
from ovsl.inference.semantic import Predict, running_argmax


class WindowsAndGlobalView(Inference):
    """Windows of a square copy of the image, and the whole image as one more view: the published evaluation.

    Probabilities of the windows are averaged where they overlap, and the result is averaged with the global view's. The
    aspect ratio is not kept. The global view comes from the image itself and not from its square copy.

    Args:
        image_size: Side of the square copy.
        crop_size: Side of the windows and of the global view.
        overlap: Share of a window that the next one repeats.
        view_batch_size: Views that go through the network together.
        class_chunk_size: Classes held at full resolution at a time.
    """

    def __init__(
        self,
        image_size: int = 640,
        crop_size: int = 384,
        overlap: float = 0.333,
        view_batch_size: int = 5,
        class_chunk_size: int = 32,
    ) -> None:
        self.image_size = image_size
        self.crop_size = crop_size
        self.windows = SlidingWindow(crop_size, int(crop_size * (1 - overlap))).windows(image_size, image_size)
        self.view_batch_size = view_batch_size
        self.class_chunk_size = class_chunk_size

    def views(self, images: Tensor) -> Tensor:
        """Images uint8, or 0..1, `(B, 3, H, W)` -> row-major windows, then global views, `((windows + 1) * B, ...)`."""
        images = _as_float(images)
        square = resize(images, (self.image_size, self.image_size))
        crops = [square[..., y1:y2, x1:x2] for y1, x1, y2, x2 in self.windows]
        return torch.cat([*crops, resize(images, (self.crop_size, self.crop_size))])

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `Inference.labels`; images uint8 or 0..1."""
        views = self._predict(predict, images)
        return running_argmax(
            lambda classes: self._average(views, original_size, classes), views.num_classes, self.class_chunk_size
        )

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`; mean probabilities."""
        return self._average(self._predict(predict, images), original_size or (images.shape[-2], images.shape[-1]))

    def _predict(self, predict: Predict, images: Tensor) -> DensePrediction:
        predictions = [dense(predict(views)) for views in self.views(images).split(self.view_batch_size)]
        return replace(predictions[0], scores=torch.cat([prediction.scores for prediction in predictions]))

    def _average(self, views: DensePrediction, original_size: Size, classes: slice = slice(None)) -> Tensor:
        count = len(views.scores) // (len(self.windows) + 1)
        windows, whole = (replace(views, scores=scores) for scores in (views.scores[:-count], views.scores[-count:]))
        local = average_windows([windows], self.windows, (self.image_size, self.image_size), classes)
        overall = resize(
            whole.semantic_scores((self.crop_size, self.crop_size), classes), (self.image_size, self.image_size)
        )
        return resize((local + overall) / 2, original_size)


class StretchedWholeImage(Inference):
    """The whole-image mode of the released code, with which it evaluates during training.

    The image is padded at the bottom and right, and the small map of probabilities is stretched to the original size,
    padding included. `ovsl.inference.WholeImage` makes neither mistake; published figures come from
    `WindowsAndGlobalView`.

    Args:
        size_divisor: Images are padded to multiples of it.
        fill: Colour of the padding, 0..1; the mean of CLIP's normalisation is zero for the network.
        class_chunk_size: Classes held at full resolution at a time.
    """

    def __init__(
        self, size_divisor: int = 32, fill: Sequence[float] = OPENAI_DATASET_MEAN, class_chunk_size: int = 32
    ) -> None:
        self.size_divisor = size_divisor
        self.fill = tuple(fill)
        self.class_chunk_size = class_chunk_size

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `Inference.labels`; images uint8 or 0..1."""
        prediction = dense(predict(self.pad(images)))
        return running_argmax(
            lambda classes: self._stretch(prediction, images, original_size, classes),
            prediction.num_classes,
            self.class_chunk_size,
        )

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`; probabilities."""
        prediction = dense(predict(self.pad(images)))
        return self._stretch(prediction, images, original_size or (images.shape[-2], images.shape[-1]))

    def pad(self, images: Tensor) -> Tensor:
        """Images uint8, or 0..1, `(B, 3, H, W)` -> padded, 0..1."""
        height, width = images.shape[-2:]
        missing = (0, -width % self.size_divisor, 0, -height % self.size_divisor)
        fill = torch.tensor(self.fill, device=images.device).view(3, 1, 1)
        return functional.pad(_as_float(images) - fill, missing) + fill

    def _stretch(
        self, prediction: DensePrediction, images: Tensor, original_size: Size, classes: slice = slice(None)
    ) -> Tensor:
        height, width = images.shape[-2:]
        scores = prediction.semantic_scores((prediction.scores.shape[2], prediction.scores.shape[3]), classes)
        # The padding is cut with the size of the image in pixels, on a map that is smaller.
        return resize(scores[..., :height, :width], original_size)


def dense(prediction: object) -> DensePrediction:
    """Take a prediction for what CAT-Seg gives."""
    assert isinstance(prediction, DensePrediction)
    return prediction


def _as_float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
