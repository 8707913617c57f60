"""Pixel-text score maps whose texts may differ from image to image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
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


def embedded_score_map(features: Tensor, embedding: nn.Conv2d, text: Tensor) -> Tensor:
    """Do what `score_map(embedding(features), text)` does without the embeddings of the cells.

    A convolution of single cells may stand on either side of the product, and texts are fewer than cells. What is left
    of the embeddings is their lengths: `|W f + b|^2 = f W'W f + 2 b'W f + b'b`.

    Args:
        features: `(B, C, h, w)`.
        embedding: Of kernel size 1, to D channels.
        text: `(K, D)`, or `(B, K, D)` with texts of each image's own; any length.

    Returns:
        `(B, K, h, w)` in -1..1.
    """
    with full_precision(features.device):
        dtype = torch.promote_types(features.dtype, torch.float32)
        weight = embedding.weight.to(dtype).flatten(1)
        bias = weight.new_zeros(len(weight)) if embedding.bias is None else embedding.bias.to(dtype)
        words = functional.normalize(text.to(dtype), dim=-1).expand(len(features), -1, -1)
        cells = features.to(dtype).flatten(2)
        products = torch.baddbmm((words @ bias)[..., None], words @ weight, cells)
        gram = (weight.T @ weight).expand(len(cells), -1, -1)
        linear = (2 * (bias @ weight))[:, None].expand(len(cells), -1, -1)
        squares = (torch.baddbmm(linear, gram, cells) * cells).sum(1, keepdim=True) + bias @ bias
        return (products / squares.clamp(min=1e-24).sqrt()).unflatten(2, features.shape[2:])
