"""Matching dense features with text."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_vectors(features: Tensor) -> Tensor:
    """Bring the vector of every cell to length 1: `(B, D, ...)`, along D."""
    # A plain division, as published: an epsilon would change the features of nearly empty cells.
    return features / features.norm(dim=1, keepdim=True)


def correlations(features: Tensor) -> Tensor:
    """Cosine similarity of every cell with every cell of the same map.

    Args:
        features: `(B, D, h, w)`, any length.

    Returns:
        `(B, h * w, h, w)` in -1..1; symmetric.
    """
    unit = unit_vectors(features)
    return torch.einsum("bdq,bdhw->bqhw", unit.flatten(2), unit)


def cosine_scores(features: Tensor, text_embeddings: Tensor) -> Tensor:
    """Cosine similarity of every cell with every text.

    Args:
        features: `(B, D, h, w)`, any length.
        text_embeddings: Unit vectors `(N, D)`.

    Returns:
        `(B, N, h, w)` in -1..1.
    """
    return torch.einsum("bdhw,nd->bnhw", unit_vectors(features), text_embeddings)
