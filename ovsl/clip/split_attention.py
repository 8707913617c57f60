"""Attention whose packed input projection is three parameters, so that queries, keys and values train apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.layers.attention import attend

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class SplitAttention(nn.Module):
    """The self-attention of a CLIP block with `q_proj_weight`, `k_proj_weight` and `v_proj_weight` of their own.

    A parameter trains as a whole or not at all; CLIP keeps all three in one `in_proj_weight`. The bias stays packed.

    Args:
        attention: The attention whose parameters are taken over.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        query, key, value = attention.in_proj_weight.detach().chunk(3)
        self.q_proj_weight = nn.Parameter(query.clone())
        self.k_proj_weight = nn.Parameter(key.clone())
        self.v_proj_weight = nn.Parameter(value.clone())
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
        query, key, value = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)
        return self.out_proj(attend(query, key, value, self.num_heads, attn_mask)), None


def split_attention(model: nn.Module) -> None:
    """Split every packed attention of transformer blocks in a CLIP model, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SplitAttention(child))


def pack_attention(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring split projections of a state dict back to CLIP's packed ones; other names stay."""
    packed = {}
    for name, tensor in state_dict.items():
        prefix, _, last = name.rpartition(".")
        if last == PROJECTIONS[0]:
            packed[f"{prefix}.in_proj_weight"] = torch.cat([state_dict[f"{prefix}.{part}"] for part in PROJECTIONS])
        elif last not in PROJECTIONS:
            packed[name] = tensor
    return packed
