"""From mask predictions to scored instances at the original image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovsl.inference.panoptic import original_mask_logits
from ovsl.inference.prediction import MaskPrediction


@dataclass
class Instances:
    """Scored masks of one image, which may overlap.

    Attributes:
        scores: `(N,)`, by descending class score before masks were taken into account.
        labels: Classes, int64 `(N,)`.
        masks: bool `(N, H, W)`.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor


def instances(
    prediction: MaskPrediction,
    size: tuple[int, int],
    original_size: tuple[int, int],
    things: Sequence[bool],
    max_instances: int = 100,
    query_chunk_size: int = 16,
) -> list[Instances]:
    """Take the best pairs of query and class, and keep the things among them.

    The rule of Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527): one mask may stand for several classes, and
    the score is the class score times the mean mask probability inside the mask. Stuff is dropped after the best
    pairs were chosen, so fewer than `max_instances` may remain.

    Args:
        prediction: Of B images of one size.
        size: `(H, W)` of the images that the network saw, without padding.
        original_size: Size at which masks are wanted.
        things: For each class whether it is countable.
        max_instances: Pairs chosen for each image.
        query_chunk_size: Masks held at full resolution as floating point numbers at a time.

    Returns:
        The instances of each image.
    """
    is_thing = torch.tensor(things, device=prediction.class_scores.device)
    num_classes = prediction.num_classes
    found = []
    for image, class_scores in enumerate(prediction.class_scores):
        scores, pairs = class_scores.flatten().topk(min(max_instances, class_scores.numel()))
        labels = pairs % num_classes
        keep = is_thing[labels]
        scores, labels, queries = scores[keep], labels[keep], pairs[keep] // num_classes
        # A query in several pairs is resized once.
        distinct, inverse = queries.unique(return_inverse=True)
        masks, certainty = [torch.zeros(0, *original_size, dtype=torch.bool, device=scores.device)], [scores[:0]]
        for first in range(0, len(distinct), query_chunk_size):
            chunk = distinct[first : first + query_chunk_size]
            logits = original_mask_logits(prediction, image, chunk, size, original_size)
            inside = logits > 0
            total = (logits.sigmoid() * inside).sum(dim=(1, 2))
            masks.append(inside)
            certainty.append(total / (inside.sum(dim=(1, 2)) + 1e-6))
        found.append(Instances(scores * torch.cat(certainty)[inverse], labels, torch.cat(masks)[inverse]))
    return found
