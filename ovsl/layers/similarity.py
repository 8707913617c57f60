"""Matching dense features with text."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_scores(features: Tensor, text_embeddings: Tensor) -> Tensor:
    """Cosine similarity of every cell with every text.

    Args:
        features: ``(B, D, h, w)``, any length.
        text_embeddings: Unit vectors ``(N, D)``.

    Returns:
        ``(B, N, h, w)`` in -1..1.
    """
    # A plain division, as published: an epsilon would change the features of nearly empty cells.
    features = features / features.norm(dim=1, keepdim=True)
    return torch.einsum("bdhw,nd->bnhw", features, text_embeddings)
