"""Blocks of a CLIP vision transformer, run part by part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional

from ovsl.layers.attention import attend
from ovsl.layers.recomputation import recompute


def _keep(branch: Tensor) -> Tensor:
    return branch


def run_block(
    block: ResidualAttentionBlock,
    tokens: Tensor,
    bias: Tensor | None = None,
    drop_path: Callable[[Tensor], Tensor] = _keep,
) -> Tensor:
    """Run one unaltered pre-norm block.

    Args:
        block: Block of a `ViTTower`.
        tokens: `(B, N, width)`.
        bias: Added to the attention logits; broadcasts to `(B, num_heads, N, N)`.
        drop_path: Stochastic depth, applied to both residual branches.

    Returns:
        `(B, N, width)`.
    """
    tokens = run_attention(block, tokens, bias, drop_path)
    return tokens + drop_path(block.ls_2(block.mlp(block.ln_2(tokens))))


def block_runner(checkpoint_activations: bool) -> Callable[[ResidualAttentionBlock, Tensor], Tensor]:
    """Give `run_block`, or a form of it that keeps only its input for the gradient."""
    return partial(recompute, run_block) if checkpoint_activations and torch.is_grad_enabled() else run_block


def run_attention(
    block: ResidualAttentionBlock,
    tokens: Tensor,
    bias: Tensor | None = None,
    drop_path: Callable[[Tensor], Tensor] = _keep,
) -> Tensor:
    """Run the first half of a block, up to what its MLP is added to; arguments as for `run_block`."""
    attention = block.attn
    projected = functional.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.chunk(3, dim=2)
    mixed = attend(query, key, value, attention.num_heads, bias)
    return tokens + drop_path(block.ls_1(attention.out_proj(mixed)))


def run_value_block(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """Run one block whose softmax attention is replaced by the identity (MaskCLIP, section 3.2).

    Residual and MLP are kept; queries and keys are never computed. `(B, N, width)` in and out.
    """
    attention, width = block.attn, tokens.shape[2]
    weight, bias = attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    value = functional.linear(block.ln_1(tokens), weight, bias)
    tokens = tokens + block.ls_1(attention.out_proj(value))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
