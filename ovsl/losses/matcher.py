"""One-to-one matching of predicted with target masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from ovsl.losses.points import Draw, point_sample
from ovsl.losses.targets import MaskTargets
from ovsl.losses.transfer import send


@dataclass(frozen=True)
class Matches:
    """Matched pairs of a batch, image by image, by ascending query within an image.

    Attributes:
        image: Image of each pair, int64 `(M,)`.
        query: Query of each pair.
        target: Mask of each pair, an index into `MaskTargets`.
    """

    image: Tensor
    query: Tensor
    target: Tensor


class HungarianMatcher:
    """Matches every target mask with the query that fits it best over all, on sampled points.

    The cost is that of Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527): negative class probability, mean
    binary cross entropy and dice, each weighted. Costs of the whole batch are computed together, in float32 also
    under mixed precision; the assignment itself runs on the CPU.

    Args:
        class_weight: Weight of the class cost.
        mask_weight: Weight of the cross entropy cost.
        dice_weight: Weight of the dice cost.
        num_points: P, points for each image; all its masks share them.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
    ) -> None:
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def __call__(
        self, levels: Sequence[tuple[Tensor, Tensor]], targets: MaskTargets, draw: Draw = torch.rand
    ) -> list[Matches]:
        """Match the queries of a batch, at every level on its own.

        Args:
            levels: `class_logits (B, Q, C + 1)` and `mask_logits (B, Q, h, w)` of each.
            targets: The batch's masks.
            draw: Source of the points; called once for each level, for `(B, P, 2)`.

        Returns:
            One for each level.

        Raises:
            FloatingPointError: The predictions hold NaN or infinity.
        """
        device = targets.labels.device
        with torch.autocast(device.type, enabled=False):
            costs = [
                self._costs(
                    class_logits.float(),
                    mask_logits.float(),
                    targets,
                    draw(len(mask_logits), self.num_points, 2, device=device),
                )
                for class_logits, mask_logits in levels
            ]
        tables = torch.stack(costs).cpu().numpy()  # the only transfer, for all levels and images
        if not np.isfinite(tables).all():
            raise FloatingPointError(
                "The predictions are no longer finite; lower the learning rate or use bf16 or fp32."
            )
        pairs = send(np.stack([_pairs(level, targets.counts) for level in tables]), device)
        return [Matches(*level) for level in pairs]

    def _costs(self, class_logits: Tensor, mask_logits: Tensor, targets: MaskTargets, points: Tensor) -> Tensor:
        """Cost of every query with every mask of its image, `(B, Q, G)` with G the largest count."""
        image, rank = targets.slots
        size = (len(mask_logits), max(targets.counts, default=0))
        labels = targets.labels.new_zeros(size)
        labels[image, rank] = targets.labels
        truth = mask_logits.new_zeros(*size, self.num_points)
        truth[image, rank] = point_sample(targets.masks.unsqueeze(1).to(mask_logits.dtype), points[image]).squeeze(1)
        logits = point_sample(mask_logits, points)

        probabilities = class_logits.softmax(dim=-1)
        class_cost = -probabilities.gather(2, labels.unsqueeze(1).expand(-1, probabilities.shape[1], -1))
        # BCE(x, t) = softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t
        mask_cost = functional.softplus(logits).sum(-1, keepdim=True) - torch.einsum("bqp,bgp->bqg", logits, truth)
        masks = logits.sigmoid()
        overlap = torch.einsum("bqp,bgp->bqg", masks, truth)
        total = masks.sum(-1).unsqueeze(2) + truth.sum(-1).unsqueeze(1)
        dice_cost = 1 - (2 * overlap + 1) / (total + 1)
        return (
            self.class_weight * class_cost
            + self.mask_weight * mask_cost / self.num_points
            + self.dice_weight * dice_cost
        )


def _pairs(tables: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Solve the assignments of the images of one level; rows image, query and target: int64 `(3, M)`."""
    images, queries, masks, first = [], [], [], 0
    for image, (table, count) in enumerate(zip(tables, counts, strict=True)):
        query, rank = linear_sum_assignment(table[:, :count])
        images.append(np.full(len(query), image))
        queries.append(query)
        masks.append(rank + first)
        first += count
    return np.stack([np.concatenate(part) for part in (images, queries, masks)]).astype(np.int64)
