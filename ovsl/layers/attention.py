"""Multi-head attention on ``scaled_dot_product_attention``, and the small perceptron beside it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiHeadAttention(nn.Module):
    """Attention of queries over keys with packed projections, the parameters of ``nn.MultiheadAttention``.

    Args:
        width: Size of queries, keys and values.
        num_heads: Number of heads; divides ``width``.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attended: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, width)``.
            key: ``(B, N, width)``.
            value: ``(B, N, width)``.
            attended: bool ``(B, Q, N)``, True where a query may look; every query needs at least one.

        Returns:
            ``(B, Q, width)``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = [
            functional.linear(tokens, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        mask = None if attended is None else attended[:, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Sequential):
    """Linear layers with ReLU between them.

    Args:
        widths: Sizes from input to output.
    """

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])
