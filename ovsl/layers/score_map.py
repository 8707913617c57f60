"""Pixel-text score maps whose texts may differ from image to image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.layers.precision import full_precision


def score_map(features: Tensor, text: Tensor) -> Tensor:
    """Cosine of every cell with every text (DenseCLIP, eq. 2), in float32 also under mixed precision.

    Args:
        features: `(B, D, h, w)`, any length.
        text: `(K, D)`, or `(B, K, D)` with texts of each image's own; any length.

    Returns:
        `(B, K, h, w)` in -1..1.
    """
    with full_precision(features.device):
        dtype = torch.promote_types(features.dtype, torch.float32)
        cells = features.to(dtype)
        words = functional.normalize(text.to(dtype), dim=-1).expand(len(cells), -1, -1)
        # The products are divided by the length of the cells, and not the cells, which are larger.
        lengths = torch.linalg.vector_norm(cells, dim=1, keepdim=True).clamp(min=1e-12)
        return torch.einsum("bdhw,bkd->bkhw", cells, words) / lengths
