"""Label maps that are enlarged as labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.inference.prediction import DensePrediction
from ovsl.inference.semantic import Inference, Predict, whole_image_labels


class NearestLabels(Inference):
    """The whole image at once, labels decided at the size of the scores and brought to the original by nearest pixel.

    As CLIP-DIY is published; all other methods compare scores at the original size, see `WholeImage`.
    """

    def labels(
        self, predict: Predict, images: Tensor, original_size: tuple[int, int], class_chunk_size: int = 32
    ) -> Tensor:
        """See `Inference.labels`."""
        prediction = predict(images)
        maps = prediction.scores if isinstance(prediction, DensePrediction) else images
        size = (maps.shape[-2], maps.shape[-1])
        labels = whole_image_labels(prediction, size, size, class_chunk_size=class_chunk_size)
        return resize_labels(labels, original_size)

    def scores(self, predict: Predict, images: Tensor) -> Tensor:
        """Scores of all classes at the size of the images: `(B, C, H, W)`."""
        return predict(images).semantic_scores((images.shape[-2], images.shape[-1]))


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize label maps `(B, H, W)` by nearest pixel, with the pixels that OpenCV takes.

    PyTorch computes their positions in single precision and now and then takes a neighbour.
    """
    rows, columns = (
        (torch.arange(wanted, dtype=torch.float64) * (1 / (wanted / own))).long().clamp(max=own - 1)
        for wanted, own in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows.to(labels.device)[:, None], columns.to(labels.device)]
