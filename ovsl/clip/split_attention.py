"""Attention whose packed input projection is three parameters, so that queries, keys and values train apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ovsl.clip.vit import attend

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class SplitAttention(nn.Module):
    """The self-attention of a CLIP block with `q_proj_weight`, `k_proj_weight` and `v_proj_weight` of their own.

    A parameter trains as a whole or not at all; CLIP keeps all three in one `in_proj_weight`. The bias stays packed.

    Args:
        attention: The attention whose parameters are taken over.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        for name, weight in zip(PROJECTIONS, attention.in_proj_weight.detach().chunk(3), strict=True):
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads = attention.num_heads

    @property
    def in_proj_weight(self) -> Tensor:
        """The three weights packed again, `(3 * width, width)`."""
        return torch.cat([self.q_proj_weight, self.k_proj_weight, self.v_proj_weight])

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Attend as `nn.MultiheadAttention` does, where query, key and value are one tensor `(B, N, width)`."""
        return attend(self, query, attn_mask), None


def split_attention(model: nn.Module) -> None:
    """Split every packed attention of transformer blocks in a CLIP model, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SplitAttention(child))
