"""Multi-head attention on `scaled_dot_product_attention`, and the small perceptron beside it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Multi-head attention of projected tokens; what comes before and after the heads is the caller's.

    Args:
        query: `(B, Q, width)`.
        key: `(B, N, width)`.
        value: `(B, N, width)`.
        num_heads: Number of heads; divides `width`.
        mask: bool, True where a query may look, or added to the logits; broadcasts to `(B, num_heads, Q, N)`.
        dropout: Share of the attention weights that is dropped.

    Returns:
        `(B, Q, width)`.
    """
    query, key, value = (tokens.unflatten(2, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Attention of queries over keys with packed projections, the parameters of `nn.MultiheadAttention`.

    Args:
        width: Size of queries, keys and values.
        num_heads: Number of heads; divides `width`.
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
            query: `(B, Q, width)`.
            key: `(B, N, width)`.
            value: `(B, N, width)`.
            attended: bool `(B, Q, N)`, True where a query may look; every query needs at least one.

        Returns:
            `(B, Q, width)`.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = map(functional.linear, (query, key, value), weights, biases)
        mask = None if attended is None else attended[:, None]
        return self.out_proj(attend(q, k, v, self.num_heads, mask))


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
