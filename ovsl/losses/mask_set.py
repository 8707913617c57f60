"""Set loss of query-mask methods: match queries with target masks, then class, mask and dice losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.losses.averaging import average_count
from ovsl.losses.matcher import HungarianMatcher, Matches
from ovsl.losses.points import Draw, point_sample, uncertain_points
from ovsl.losses.targets import MaskTargets


def point_mask_losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return binary cross entropy and dice of masks at points.

    Args:
        logits: `(N, P)`.
        truth: Target values at the same points, 0..1, `(N, P)`.

    Returns:
        Sums over the N masks of mean cross entropy and of `1 - (2 sum(p t) + 1) / (sum p + sum t + 1)`.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum()
    masks = logits.sigmoid()
    dice = 1 - (2 * (masks * truth).sum(1) + 1) / (masks.sum(1) + truth.sum(1) + 1)
    return cross_entropy, dice.sum()


class MaskSetCriterion:
    """The losses of Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527), as SAN and FC-CLIP train with them.

    Each level of the network (deep supervision) is matched and weighed on its own. Queries without a target learn the
    no-object class. Mask losses see `num_points` points of each matched mask, most of them where the mask is
    undecided, and are divided by the number of targets of the batch, averaged over processes.

    Args:
        matcher: Finds the pairs.
        class_weight: Weight of the cross entropy over C + 1 classes.
        mask_weight: Weight of the binary cross entropy of masks.
        dice_weight: Weight of the dice loss.
        no_object_weight: Class weight of no-object in the cross entropy, 1 for all others.
        num_points: Points for each matched mask.
        oversample_ratio: See `uncertain_points`.
        importance_sample_ratio: See `uncertain_points`.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio

    def __call__(
        self, levels: Sequence[tuple[Tensor, Tensor]], targets: MaskTargets, draw: Draw = torch.rand
    ) -> dict[str, Tensor]:
        """Return the weighted losses of a batch.

        Args:
            levels: For each supervised level, in the order of the network, `class_logits (B, Q, C + 1)`, no-object
                last, and `mask_logits (B, Q, h, w)`.
            targets: The batch's masks, at any resolution that spans the same area as the logits.
            draw: Source of random points, called like `torch.rand`. Matching points `(B, P, 2)` are drawn for all
                levels, then for each level candidates `(M, 3P, 2)` and fresh points. The last level comes first, then
                the others in order.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last level, the same with suffix `_0`, `_1` ... of
            the earlier ones.
        """
        num_masks = average_count(torch.full((), len(targets.labels), device=targets.labels.device))
        *earlier, last = levels
        levels = [last, *earlier]
        suffixes = ["", *(f"_{i}" for i in range(len(earlier)))]
        losses: dict[str, Tensor] = {}
        for suffix, (class_logits, mask_logits), matches in zip(
            suffixes, levels, self.matcher(levels, targets, draw), strict=True
        ):
            mask_loss, dice_loss = self._mask_losses(mask_logits, targets, matches, draw)
            losses[f"loss_ce{suffix}"] = self.class_weight * self._class_loss(class_logits, targets, matches)
            losses[f"loss_mask{suffix}"] = self.mask_weight * mask_loss / num_masks
            losses[f"loss_dice{suffix}"] = self.dice_weight * dice_loss / num_masks
        return losses

    def _class_loss(self, class_logits: Tensor, targets: MaskTargets, matches: Matches) -> Tensor:
        no_object = class_logits.shape[2] - 1
        labels = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device)
        labels[matches.image, matches.query] = targets.labels[matches.target]
        weight = torch.ones(no_object + 1, device=class_logits.device)
        weight[no_object] = self.no_object_weight
        return functional.cross_entropy(class_logits.float().transpose(1, 2), labels, weight)

    def _mask_losses(
        self, mask_logits: Tensor, targets: MaskTargets, matches: Matches, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        logits = mask_logits[matches.image, matches.query].float()
        points = uncertain_points(logits, self.num_points, self.oversample_ratio, self.importance_sample_ratio, draw)
        masks = targets.masks[matches.target].unsqueeze(1).to(logits.dtype)
        truth = point_sample(masks, points).squeeze(1)
        return point_mask_losses(point_sample(logits.unsqueeze(1), points).squeeze(1), truth)
