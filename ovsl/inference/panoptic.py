"""From mask predictions to panoptic maps at the original image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovsl.inference.prediction import MaskPrediction, resize


@dataclass
class PanopticMap:
    """Segments of one image that do not overlap.

    Attributes:
        segment_ids: int64 `(H, W)`: 0 where there is no segment, else 1..N.
        classes: Class of segments 1..N, int64 `(N,)`.
    """

    segment_ids: Tensor
    classes: Tensor


def panoptic_maps(
    prediction: MaskPrediction,
    size: tuple[int, int],
    original_size: tuple[int, int],
    things: Sequence[bool],
    object_threshold: float = 0.0,
    overlap_threshold: float = 0.8,
    query_chunk_size: int = 16,
) -> list[PanopticMap]:
    """Give every pixel to one mask, then drop masks that lost most of themselves.

    The rule of Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527): a pixel belongs to the query with the largest
    product of class score and mask probability; a query stays if it owns at least `overlap_threshold` of its own
    mask; stuff of one class is one segment, every thing is its own. Queries go through in chunks with a running
    maximum, so that no `(Q, H, W)` tensor is held.

    Args:
        prediction: Of B images of one size.
        size: `(H, W)` of the images that the network saw, without padding.
        original_size: Size at which the map is wanted.
        things: For each class whether it is countable.
        object_threshold: Class score that a query has to exceed (0 in FC-CLIP, 0.8 in Mask2Former).
        overlap_threshold: Share of its mask that a query has to own.
        query_chunk_size: Masks held at full resolution at a time.

    Returns:
        One map for each image.
    """
    is_thing = torch.tensor(things, device=prediction.class_scores.device)
    return [
        _panoptic_map(
            prediction, image, size, original_size, is_thing, object_threshold, overlap_threshold, query_chunk_size
        )
        for image in range(len(prediction.mask_logits))
    ]


def _panoptic_map(
    prediction: MaskPrediction,
    image: int,
    size: tuple[int, int],
    original_size: tuple[int, int],
    is_thing: Tensor,
    object_threshold: float,
    overlap_threshold: float,
    chunk_size: int,
) -> PanopticMap:
    scores, labels = prediction.class_scores[image].max(dim=-1)
    kept = scores > object_threshold
    if prediction.no_object_scores is not None:
        kept &= scores >= prediction.no_object_scores[image]
    queries = kept.nonzero().flatten()
    scores, labels = scores[queries], labels[queries]
    device = scores.device
    best = torch.full(original_size, -1.0, device=device)
    owner = torch.zeros(original_size, dtype=torch.int64, device=device)
    owned_inside = torch.zeros(original_size, dtype=torch.bool, device=device)
    mask_areas = []
    for first in range(0, len(queries), chunk_size):
        masks = original_mask_logits(prediction, image, queries[first : first + chunk_size], size, original_size)
        masks = masks.sigmoid()
        inside = masks >= 0.5
        mask_areas.append(inside.sum(dim=(1, 2)))
        values, index = (masks * scores[first : first + chunk_size, None, None]).max(dim=0)
        better = values > best
        best = torch.where(better, values, best)
        owner = torch.where(better, index + first, owner)
        owned_inside = torch.where(better, inside.gather(0, index[None])[0], owned_inside)
    if not mask_areas:
        return PanopticMap(torch.zeros_like(owner), labels)

    # Per query: pixels of its own mask, pixels owned, and pixels of both.
    mask_area = torch.cat(mask_areas)
    owned_area = torch.bincount(owner.flatten(), minlength=len(queries))
    written_area = torch.bincount(owner[owned_inside], minlength=len(queries))
    stays = (mask_area > 0) & (owned_area > 0) & (written_area > 0)
    stays &= owned_area / mask_area.clamp(min=1) >= overlap_threshold

    # Segments are numbered by their first query. Things are their own, stuff of a class goes to its first query.
    rank = torch.arange(len(queries), device=device)
    same = (labels[:, None] == labels) & stays & ~is_thing[labels]
    leader = torch.where(is_thing[labels] | ~stays, rank, same.int().argmax(dim=1))
    leads = stays & (leader == rank)
    segment = torch.where(stays, leads.cumsum(0)[leader], 0)
    return PanopticMap(segment[owner] * owned_inside, labels[leads])


def original_mask_logits(
    prediction: MaskPrediction, image: int, queries: Tensor, size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Mask logits of some queries of one image at the original size, `(len(queries), H0, W0)`."""
    chosen = replace(prediction, mask_logits=prediction.mask_logits[image, queries].unsqueeze(0))
    return resize(chosen.resized_mask_logits(size), original_size).squeeze(0)
