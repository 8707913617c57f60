"""From predictions to semantic label maps at the original image size.

Labels are made by bands of rows (`ovsl.inference.rows`): neither the masks of all queries nor the scores of all classes
are ever held at full size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ovsl.inference.prediction import MaskPrediction, Prediction, resize
from ovsl.inference.regions import resize_regions
from ovsl.inference.rows import Rows, Size
from ovsl.vocabulary import Vocabulary

Predict = Callable[..., Prediction]
"""The network with the vocabulary bound: images `(B, 3, h, w)`, and region maps `(B, h, w)` for a method that goes by
them."""

Window = tuple[int, int, int, int]
"""`(y1, x1, y2, x2)` in pixels of the resized image."""


class Inference(ABC):
    """How images go through the network and become label maps."""

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a vocabulary that this inference cannot answer for; none by default.

        Raises:
            InputError: With what the vocabulary lacks.
        """
        return None

    @abstractmethod
    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """Predict the label maps of images of one size.

        Args:
            predict: The network with the vocabulary bound: images `(B, 3, h, w)` -> `Prediction`.
            images: `(B, 3, H, W)`.
            original_size: Size `(H0, W0)` at which labels are wanted.
            regions: Region maps of the original images, integers `(B, H0, W0)`, for methods that go by them.

        Returns:
            int64 `(B, H0, W0)`, values 0..C-1.
        """

    @abstractmethod
    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """Compute the scores of all classes whose arg-max the labels are.

        A tensor of all classes at full size: for export and analyses; evaluation takes `labels`.

        Args:
            predict: As for `labels`.
            images: `(B, 3, H, W)`.
            original_size: Size at which scores are wanted; None for that of the images.

        Returns:
            `(B, C, H0, W0)`.
        """

    def score_rows(self, predict: Predict, images: Tensor, original_size: Size) -> Rows:
        """Give the scores of all classes by rows, for analyses; made together by an inference that needs them so.

        Args:
            predict: As for `labels`.
            images: `(B, 3, H, W)`.
            original_size: Size at which scores are wanted.
        """
        return Rows.of(self.scores(predict, images, original_size))


class WholeImage(Inference):
    """The whole image at once.

    Args:
        resize_masks_first: For methods that predict masks: bring mask logits to the original size and combine them
            there with the classes (SAN, panoptic FC-CLIP). Otherwise combine at input size, then resize the scores.
    """

    def __init__(self, resize_masks_first: bool = True) -> None:
        self.resize_masks_first = resize_masks_first

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `labels`."""
        size = (images.shape[-2], images.shape[-1])
        _, (prediction,) = self.predictions(predict, images, regions)
        return whole_image_labels(prediction, size, original_size, self.resize_masks_first)

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`."""
        return self.score_rows(predict, images, original_size or (images.shape[-2], images.shape[-1])).whole()

    def score_rows(self, predict: Predict, images: Tensor, original_size: Size) -> Rows:
        """See `Inference.score_rows`; in bands."""
        size = (images.shape[-2], images.shape[-1])
        return whole_image_rows(predict(images), size, original_size, self.resize_masks_first)

    def predictions(
        self, predict: Predict, images: Tensor, regions: Tensor | None = None
    ) -> tuple[list[Window], list[Prediction]]:
        """Predict the whole image as the only window; see `SlidingWindow.predictions`."""
        size = (images.shape[-2], images.shape[-1])
        whole = predict(images) if regions is None else predict(images, resize_regions(regions, size))
        return [(0, 0, *size)], [whole]


class SlidingWindow(Inference):
    """Overlapping square windows, scores averaged where they overlap.

    A window that would pass the border is moved back inside, as all implementations of the field do.

    Args:
        crop_size: Side of the window in pixels of the resized image.
        stride: Step between windows in pixels.
        window_batch_size: Windows that go through the network together.
    """

    def __init__(self, crop_size: int = 512, stride: int = 426, window_batch_size: int = 8) -> None:
        self.crop_size = crop_size
        self.stride = stride
        self.window_batch_size = window_batch_size

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `labels`."""
        size = (images.shape[-2], images.shape[-1])
        windows, predictions = self.predictions(predict, images, regions)
        rows = average_window_rows(predictions, windows, size).resized(original_size)
        return rows.labels(predictions[0].num_channels)

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`; the mean of the windows."""
        size = (images.shape[-2], images.shape[-1])
        windows, predictions = self.predictions(predict, images)
        return resize(average_windows(predictions, windows, size), original_size or size)

    def score_rows(self, predict: Predict, images: Tensor, original_size: Size) -> Rows:
        """See `Inference.score_rows`; in bands."""
        windows, predictions = self.predictions(predict, images)
        return average_window_rows(predictions, windows, (images.shape[-2], images.shape[-1])).resized(original_size)

    def predictions(
        self, predict: Predict, images: Tensor, regions: Tensor | None = None
    ) -> tuple[list[Window], list[Prediction]]:
        """Predict all windows.

        Args:
            predict: See `Inference.labels`.
            images: `(B, 3, H, W)`.
            regions: See `Inference.labels`; resized to the images by nearest neighbour and cut alike.

        Returns:
            The windows, and predictions of consecutive windows, window-major and image-minor along the batch.
        """
        size = (images.shape[-2], images.shape[-1])
        windows = self.windows(*size)
        maps = [images] if regions is None else [images, resize_regions(regions, size)]
        crops = [torch.cat([m[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows]) for m in maps]
        chunks = zip(*(crop.split(self.window_batch_size * len(images)) for crop in crops), strict=True)
        return windows, [predict(*chunk) for chunk in chunks]

    def windows(self, height: int, width: int) -> list[Window]:
        """Windows `(y1, x1, y2, x2)` in row-major order."""

        def starts(length: int) -> list[int]:
            count = max(length - self.crop_size + self.stride - 1, 0) // self.stride + 1
            ends = [min(i * self.stride + self.crop_size, length) for i in range(count)]
            return [max(end - self.crop_size, 0) for end in ends]

        return [
            (y, x, min(y + self.crop_size, height), min(x + self.crop_size, width))
            for y in starts(height)
            for x in starts(width)
        ]


def whole_image_labels(
    prediction: Prediction, size: Size, original_size: Size, resize_masks_first: bool = True
) -> Tensor:
    """Label maps of a prediction for whole images.

    Args:
        prediction: Of B images of one size.
        size: `(H, W)` of the images that the network saw, without padding.
        original_size: Size `(H0, W0)` at which labels are wanted.
        resize_masks_first: See `WholeImage`.

    Returns:
        int64 `(B, H0, W0)`, values 0..C-1.
    """
    rows = whole_image_rows(prediction, size, original_size, resize_masks_first)
    return rows.labels(prediction.num_channels)


def whole_image_rows(prediction: Prediction, size: Size, original_size: Size, resize_masks_first: bool = True) -> Rows:
    """Scores of all classes at the original size by rows; see `whole_image_labels`."""
    if isinstance(prediction, MaskPrediction) and resize_masks_first:
        return prediction.classified(prediction.mask_rows(size).resized(original_size))
    return prediction.score_rows(size).resized(original_size)


def average_window_rows(
    predictions: list[Prediction], windows: list[Window], size: Size, classes: slice = slice(None)
) -> Rows:
    """Mean of the window scores at every pixel, by rows.

    Args:
        predictions: Predictions of consecutive windows, window-major and image-minor along the batch.
        windows: Windows `(y1, x1, y2, x2)` in the same order, of one size.
        size: `(H, W)` of the image.
        classes: Classes wanted.

    Returns:
        Rows of `(B, H, W, C')`.
    """
    y1, x1, y2, x2 = windows[0]
    counts = [prediction.num_images for prediction in predictions]
    num_images = sum(counts) // len(windows)
    parts = [
        prediction.images(slice(start, start + num_images)).score_rows((y2 - y1, x2 - x1), classes)
        for prediction, count in zip(predictions, counts, strict=True)
        for start in range(0, count, num_images)
    ]

    def band(first: int, last: int) -> Tensor:
        total, count = torch.zeros(()), torch.zeros(())
        for part, (y1, x1, y2, x2) in zip(parts, windows, strict=True):
            top, bottom = max(first, y1), min(last, y2)
            if top >= bottom:
                continue
            scores = part.band(top - y1, bottom - y1)
            if not total.ndim:
                total = scores.new_zeros(num_images, last - first, size[1], scores.shape[3])
                count = scores.new_zeros(last - first, size[1], 1)
            total[:, top - first : bottom - first, x1:x2] += scores
            count[top - first : bottom - first, x1:x2] += 1
        return total / count

    return Rows(size, band)


def average_windows(
    predictions: list[Prediction], windows: list[Window], size: Size, classes: slice = slice(None)
) -> Tensor:
    """Mean of the window scores at every pixel, `(B, C', H, W)`; see `average_window_rows`."""
    return average_window_rows(predictions, windows, size, classes).whole()


def running_argmax(scores_of: Callable[[slice], Tensor], num_classes: int, chunk_size: int) -> Tensor:
    """Arg-max over classes of which only a chunk is held at a time.

    Args:
        scores_of: Scores `(B, C', H, W)` of a slice of the classes.
        num_classes: C.
        chunk_size: Classes at a time.

    Returns:
        int64 `(B, H, W)`.
    """
    best: Tensor | None = None
    labels: Tensor | None = None
    for start in range(0, num_classes, chunk_size):
        values, index = scores_of(slice(start, start + chunk_size)).max(dim=1)
        if best is None or labels is None:
            best, labels = values, index
        else:
            # Strictly greater keeps the first of equal scores, as arg-max over all classes does.
            better = values > best
            best = torch.where(better, values, best)
            labels = torch.where(better, index + start, labels)
    assert labels is not None
    return labels
