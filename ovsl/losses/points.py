"""Masks at sampled points instead of everywhere (Kirillov et al., PointRend, CVPR 2020, arXiv 1912.08193)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Draw = Callable[..., Tensor]
"""Uniform numbers in 0..1, called like `torch.rand`: `draw(*shape, device=device)`."""


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Read bilinear values of maps at points; zero outside, `align_corners=False`.

    Args:
        maps: `(N, C, H, W)`, floating point.
        points: `(N, P, 2)` as (x, y) in 0..1 of the map's width and height.

    Returns:
        `(N, C, P)`.
    """
    grid = (2 * points - 1).unsqueeze(2).to(maps.dtype)
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(3)


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    draw: Draw = torch.rand,
) -> Tensor:
    """Draw points of which most lie where a mask is undecided (PointRend, section 3.1).

    Draws `oversample_ratio * num_points` candidates for each mask, keeps those with the smallest `|logit|`, and
    fills up with fresh uniform points.

    Args:
        mask_logits: `(N, h, w)`.
        num_points: P, points for each mask.
        oversample_ratio: Candidates per point.
        importance_sample_ratio: Share of the points taken from the candidates.
        draw: Source of randomness; called for the candidates first, then for the fresh points.

    Returns:
        `(N, P, 2)`, (x, y) in 0..1, most uncertain first, without gradient.
    """
    count, device = mask_logits.shape[0], mask_logits.device
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates = draw(count, int(oversample_ratio * num_points), 2, device=device)
    uncertainty = -point_sample(mask_logits.unsqueeze(1), candidates).squeeze(1).abs()
    chosen = uncertainty.topk(num_uncertain, dim=1).indices
    points = candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    return torch.cat([points, draw(count, num_points - num_uncertain, 2, device=device)], dim=1)
