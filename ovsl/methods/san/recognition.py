"""Recognition inside the frozen CLIP: its deep blocks classify the masks under the biases of the side network.

The CLIP vision transformer is handed in at every call.
"""

from __future__ import annotations

from functools import partial

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.clip.blocks import run_block
from ovsl.layers import adaptive_max_pool, attend, recompute


def pool_biases(biases: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring biases to CLIP's patch grid by adaptive maximum pooling.

    Args:
        biases: `(layers, B, heads, Q, h, w)`.
        grid: CLIP's grid `(clip_h, clip_w)`.

    Returns:
        `(layers, B, heads, Q, clip_h*clip_w)`.
    """
    pooled = adaptive_max_pool(biases.flatten(0, 2), grid)
    return pooled.flatten(2).unflatten(0, biases.shape[:3])


def recognize(
    tower: ViTTower, tokens: Tensor, biases: Tensor, num_shallow_blocks: int, checkpoint_activations: bool = False
) -> Tensor:
    """Classify masks with CLIP's deep blocks and biased copies of its class token (section 3.3 of the paper).

    Each query gets a copy of the class token (SLS token) that attends to itself and, with its biases, to the patches.
    Class token and patches see no SLS token, so they run as in plain CLIP, once for the queries of all levels; their
    way through the last block, where nobody reads them any more, is left out.

    Args:
        tower: The image tower.
        tokens: Class token and patches after the last shallow block, `(B, 1 + N, clip_width)`.
        biases: Pooled biases `(layers, B, heads or 1, Q, N)`, with one layer for all deep blocks or one for each.
        num_shallow_blocks: Blocks that `tokens` have been through.
        checkpoint_activations: Keep only the inputs of blocks for the gradient.

    Returns:
        Unit vectors `(B, Q, D)`.
    """
    run = partial(recompute, _deep_block) if checkpoint_activations and torch.is_grad_enabled() else _deep_block
    num_queries = biases.shape[3]
    # Columns of the SLS tokens, of which each sees only its own, and of the class token, which none sees.
    own = torch.eye(num_queries, num_queries + 1, dtype=torch.bool, device=biases.device)
    cut = torch.zeros_like(own, dtype=biases.dtype).masked_fill(~own, float("-inf")).expand(*biases.shape[:3], -1, -1)
    masks = torch.cat([cut, biases], dim=4)
    slots = tokens[:, :1].expand(-1, num_queries, -1)
    *deep, last = tower.blocks[num_shallow_blocks:]
    for block, mask in zip(deep, masks[:-1] if len(masks) > 1 else [masks[0]] * len(deep), strict=True):
        slots, tokens = run(block, slots, tokens, mask)
    slots, _ = run(last, slots, tokens, masks[-1], True)
    return _embed(tower, slots)


def _deep_block(
    block: ResidualAttentionBlock, slots: Tensor, tokens: Tensor, mask: Tensor, slots_only: bool = False
) -> tuple[Tensor, Tensor]:
    """One CLIP block on SLS tokens and plain tokens; `slots_only` leaves the plain tokens behind."""
    attention, num_slots, width = block.attn, slots.shape[1], slots.shape[2]
    sequence = torch.cat([slots, tokens], dim=1)
    normed = block.ln_1(sequence)
    if slots_only:
        sequence = slots
    query_weight, key_value_weight = attention.in_proj_weight.split([width, 2 * width])
    query_bias, key_value_bias = attention.in_proj_bias.split([width, 2 * width])
    query = functional.linear(normed[:, : sequence.shape[1]], query_weight, query_bias)
    key, value = functional.linear(normed, key_value_weight, key_value_bias).chunk(2, dim=2)
    heads = attention.num_heads
    mixed = attend(query[:, :num_slots], key, value, heads, mask.to(query.dtype))
    if not slots_only:
        plain = attend(query[:, num_slots:], key[:, num_slots:], value[:, num_slots:], heads)
        mixed = torch.cat([mixed, plain], dim=1)
    sequence = sequence + block.ls_1(attention.out_proj(mixed))
    sequence = sequence + block.ls_2(block.mlp(block.ln_2(sequence)))
    return sequence[:, :num_slots], sequence[:, num_slots:]


def recognize_literally(tower: ViTTower, tokens: Tensor, biases: Tensor, num_shallow_blocks: int) -> Tensor:
    """Recognize as published: one sequence, one complete bias matrix for all of it; the same as `recognize`.

    Kept as the reference that the cheaper form is compared with, and for counting operations as the paper does.
    """
    num_queries = biases.shape[3]
    sequence = torch.cat([tokens[:, :1].expand(-1, num_queries, -1), tokens], dim=1)
    matrices = complete_bias_matrix(biases)
    for index, block in enumerate(tower.blocks[num_shallow_blocks:]):
        sequence = run_block(block, sequence, matrices[min(index, len(matrices) - 1)])
    return _embed(tower, sequence[:, :num_queries])


def complete_bias_matrix(biases: Tensor) -> Tensor:
    """Additive attention matrix over SLS tokens, class token and patches.

    Args:
        biases: Pooled biases `(layers, B, heads, Q, N)`.

    Returns:
        `(layers, B, heads, Q + 1 + N, Q + 1 + N)`; what is cut has -100.
    """
    num_queries, length = biases.shape[3], sum(biases.shape[3:]) + 1
    matrix = biases.new_zeros(*biases.shape[:3], length, length)
    matrix[..., :num_queries] = -100
    matrix[..., :num_queries, num_queries] = -100
    matrix.diagonal(dim1=-2, dim2=-1)[..., :num_queries] = 0
    matrix[..., :num_queries, num_queries + 1 :] = biases
    return matrix


def _embed(tower: ViTTower, slots: Tensor) -> Tensor:
    return functional.normalize(tower.project(slots), dim=-1)
