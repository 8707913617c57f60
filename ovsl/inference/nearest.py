"""Label maps that are enlarged as labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.inference.prediction import DensePrediction, Prediction
from ovsl.inference.semantic import Inference, Predict, Size, WholeImage, whole_image_labels


class NearestLabels(Inference):
    """The whole image at once, labels decided at the size of the scores and brought to the original by nearest pixel.

    As CLIP-DIY is published; all other methods compare scores at the original size, see `WholeImage`.
    """

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `Inference.labels`."""
        _, (prediction,) = WholeImage().predictions(predict, images, regions)
        size = _own_size(prediction, images)
        labels = whole_image_labels(prediction, size, size)
        return enlarge(labels, original_size)

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`."""
        prediction = predict(images)
        scores = prediction.semantic_scores(_own_size(prediction, images))
        return enlarge(scores, original_size or (images.shape[-2], images.shape[-1]))


def _own_size(prediction: Prediction, images: Tensor) -> Size:
    maps = prediction.scores if isinstance(prediction, DensePrediction) else images
    return maps.shape[-2], maps.shape[-1]


def enlarge(maps: Tensor, size: Size) -> Tensor:
    """Resize `(..., H, W)` by nearest pixel, with the pixels that OpenCV takes.

    PyTorch computes their positions in single precision and now and then takes a neighbour.
    """
    rows, columns = (
        (torch.arange(wanted, dtype=torch.float64) * (1 / (wanted / own))).long().clamp(max=own - 1).to(maps.device)
        for wanted, own in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]
