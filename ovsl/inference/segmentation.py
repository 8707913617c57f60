"""Everything that one pass of the network says about images: labels, segments, instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovsl.inference.instance import Instances, instances
from ovsl.inference.panoptic import PanopticMap, panoptic_maps
from ovsl.inference.prediction import MaskPrediction
from ovsl.inference.semantic import Inference, Predict, Size, WholeImage, whole_image_labels


@dataclass
class Segmentation:
    """What was found in one image. Not frozen: Lightning moves what a step returns from field to field.

    Attributes:
        labels: Class of every pixel, int64 `(H, W)`.
        panoptic: Segments that do not overlap; None where they were not asked for or there are no masks.
        instances: Scored masks of things, likewise.
    """

    labels: Tensor
    panoptic: PanopticMap | None = None
    instances: Instances | None = None

    def enlarged(self, size: Size) -> Segmentation:
        """Bring the maps to another size by the nearest pixel, and leave the instances out."""
        panoptic = self.panoptic and replace(self.panoptic, segment_ids=_nearest(self.panoptic.segment_ids, size))
        return Segmentation(_nearest(self.labels, size), panoptic)


def _nearest(labels: Tensor, size: Size) -> Tensor:
    """Nearest neighbour for maps of integers, which `interpolate` does not take: the pixel below each centre."""
    if labels.shape == size:
        return labels
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(labels.shape, size, strict=True)
    )
    return labels[rows][:, columns]


def segment(
    predict: Predict,
    images: Tensor,
    original_size: tuple[int, int],
    inference: Inference,
    things: Sequence[bool] | None = None,
    regions: Tensor | None = None,
) -> list[Segmentation]:
    """Segment images of one size, each of which goes through the network once.

    Segments and instances come from masks of the whole image; with a sliding window, masks of different windows are not
    joined, and there are only labels.

    Args:
        predict: The network with the vocabulary bound.
        images: `(B, 3, H, W)`.
        original_size: Size `(H0, W0)` at which everything is wanted.
        inference: How images go through the network.
        things: For each class whether it is countable; None asks for labels only.
        regions: Region maps `(B, H0, W0)` for a method that goes by them, see `Inference.labels`.
    """
    if things is None or not isinstance(inference, WholeImage):
        labels = inference.labels(predict, images, original_size, regions=regions)
        return [Segmentation(image) for image in labels]
    size = (images.shape[-2], images.shape[-1])
    prediction = predict(images)
    labels = whole_image_labels(prediction, size, original_size, inference.resize_masks_first)
    if not isinstance(prediction, MaskPrediction):
        return [Segmentation(image) for image in labels]
    panoptic = panoptic_maps(prediction, size, original_size, things)
    found = instances(prediction, size, original_size, things)
    return [Segmentation(*maps) for maps in zip(labels, panoptic, found, strict=True)]
