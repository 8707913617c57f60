"""Dense features of a CLIP vision transformer, written out block by block.

Everything works on open_clip's own ``VisionTransformer`` (batch first, ``(B, 1 + h*w, width)`` tokens, class token
first) and never changes it: position embeddings are interpolated functionally at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

DenseMode = Literal["value", "attention"]


def interpolate_positions(
    positions: Tensor, grid: tuple[int, int], mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """Resize a learned square position grid, the class row untouched.

    Args:
        positions: ``(1 + g*g, width)``, class row first.
        grid: Wanted grid ``(h, w)``.
        mode: Interpolation, without antialiasing, ``align_corners=False``.

    Returns:
        ``(1 + h*w, width)``.
    """
    side = int((positions.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    patches = positions[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, size=grid, mode=mode, align_corners=False)
    return torch.cat([positions[:1], patches.flatten(2).squeeze(0).T])


def embed_patches(
    visual: Any, images: Tensor, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> tuple[Tensor, tuple[int, int]]:
    """Turn images into the tokens that enter the first block.

    Sides that the patch size does not divide lose their remainder, as in CLIP itself.

    Args:
        visual: open_clip ``VisionTransformer`` with a class token.
        images: Normalised ``(B, 3, H, W)``.
        mode: Interpolation of the position grid.

    Returns:
        Tokens ``(B, 1 + h*w, width)`` after ``ln_pre``, and the grid ``(h, w)``.
    """
    patches = visual.conv1(images)
    grid = (patches.shape[2], patches.shape[3])
    tokens = patches.flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
    tokens = torch.cat([class_token, tokens], dim=1)
    tokens = tokens + interpolate_positions(visual.positional_embedding, grid, mode).to(tokens.dtype)
    return visual.ln_pre(tokens), grid


def attend(attention: nn.MultiheadAttention, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """Self-attention of a CLIP block through ``scaled_dot_product_attention``.

    Args:
        attention: The block's ``attn``.
        tokens: Normalised tokens ``(B, N, width)``.
        bias: Added to the attention logits; broadcasts to ``(B, heads, N, N)``.

    Returns:
        ``(B, N, width)``, output projection applied.
    """
    batch, length, width = tokens.shape
    heads = attention.num_heads
    projected = functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def run_block(block: Any, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """One unaltered pre-norm CLIP block, with an optional additive attention bias; ``(B, N, width)`` in and out."""
    tokens = tokens + block.ls_1(attend(block.attn, block.ln_1(tokens), bias))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def run_value_block(block: Any, tokens: Tensor) -> Tensor:
    """One CLIP block whose softmax attention is replaced by the identity (MaskCLIP, section 3.2).

    Residual and MLP are kept; queries and keys are never computed.
    """
    attention = block.attn
    width = tokens.shape[-1]
    bias = attention.in_proj_bias
    value = functional.linear(block.ln_1(tokens), attention.in_proj_weight[2 * width :], bias[2 * width :])
    tokens = tokens + block.ls_1(attention.out_proj(value))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def intermediate_tokens(
    visual: Any, images: Tensor, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield the tokens after ``ln_pre`` and after every block, in order, with the grid ``(h, w)``."""
    tokens, grid = embed_patches(visual, images, mode)
    yield tokens, grid
    for block in visual.transformer.resblocks:
        tokens = run_block(block, tokens)
        yield tokens, grid


def dense_features(visual: Any, images: Tensor, mode: DenseMode) -> Tensor:
    """Patch features in the joint image-text space.

    Args:
        visual: open_clip ``VisionTransformer``.
        images: Normalised ``(B, 3, H, W)``.
        mode: ``value`` replaces the attention of the last block by its values (MaskCLIP); ``attention`` leaves the
            tower as it is.

    Returns:
        ``(B, D, h, w)``, not normalised.
    """
    tokens, grid = embed_patches(visual, images)
    *first, last = visual.transformer.resblocks
    for block in first:
        tokens = run_block(block, tokens)
    tokens = run_value_block(last, tokens) if mode == "value" else run_block(last, tokens)
    return project_patches(visual, tokens, grid)


def project_patches(visual: Any, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Final norm and projection of the patch tokens: ``(B, 1 + h*w, width)`` -> ``(B, D, h, w)``."""
    features = visual.ln_post(tokens[:, 1:]) @ visual.proj
    return features.transpose(1, 2).unflatten(2, grid)
