"""Pixel decoder: several backbone maps to multi-scale features and one map of mask features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.layers.deformable_attention import MultiScaleDeformableAttention, cell_centres
from ovsl.layers.positions import sine_positions
from ovsl.layers.precision import full_precision

GROUPS = 32


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a two-layer perceptron, each with a residual and a norm after it.

    Args:
        width: Size of the tokens.
        num_heads: Heads of the attention.
        num_levels: Number of feature maps.
        num_points: Points per head and level.
        feed_forward: Hidden size of the perceptron.
    """

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int, feed_forward: int) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(width, num_heads, num_levels, num_points)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, feed_forward), nn.ReLU(), nn.Linear(feed_forward, width))
        self.feed_forward_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.feed_forward[0].weight)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.feed_forward[2].weight)  # type: ignore[arg-type]

    def forward(
        self, tokens: Tensor, positions: Tensor, reference_points: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Update the tokens of all levels, `(B, S, width)` in and out; positions are `(S, width)`."""
        attended = self.attention(tokens + positions, tokens, reference_points, sizes)
        tokens = self.attention_norm(tokens + attended)
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


class PixelDecoder(nn.Module):
    """Deformable encoder over the three coarsest maps of a backbone, and one top-down step to stride 4.

    The pixel decoder of Mask2Former (Cheng et al., CVPR 2022, https://arxiv.org/abs/2112.01527, section 3.2). It runs
    in float32 also under autocast, as released: its sampling places do not survive half precision.

    Args:
        in_channels: Channels of the backbone maps at stride 4, 8, 16 and 32.
        width: Channels of the multi-scale features, divisible by 32.
        mask_width: Channels of the mask features.
        num_heads: Heads of the deformable attention.
        num_points: Points per head and level.
        num_layers: Number of encoder layers.
        feed_forward: Hidden size of their perceptrons.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 256,
        mask_width: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        num_layers: int = 6,
        feed_forward: int = 1024,
    ) -> None:
        super().__init__()
        finest, *coarser = in_channels
        self.width = width
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(GROUPS, width)) for channels in coarser[::-1]
        )
        self.level_embedding = nn.Parameter(torch.randn(len(coarser), width))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(width, num_heads, len(coarser), num_points, feed_forward) for _ in range(num_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(finest, width, 1, bias=False), nn.GroupNorm(GROUPS, width))
        self.output = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU()
        )
        self.mask_features = nn.Conv2d(width, mask_width, 1)
        for projection in self.input_projections:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]
        for convolution in (self.lateral[0], self.output[0], self.mask_features):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # type: ignore[arg-type]
        nn.init.zeros_(self.mask_features.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: Backbone maps `(B, channels, h, w)` at stride 4, 8, 16 and 32.

        Returns:
            Mask features `(B, mask_width, H/4, W/4)`, and the multi-scale features `(B, width, h, w)` from coarse
            to fine (stride 32, 16, 8).
        """
        with full_precision(features[0].device):
            finest, *coarser = [feature.float() for feature in features]
            maps = [project(level) for project, level in zip(self.input_projections, coarser[::-1], strict=True)]
            sizes = [(level.shape[2], level.shape[3]) for level in maps]
            tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
            positions = torch.cat(
                [
                    sine_positions(*size, self.width, tokens.device) + embedding
                    for size, embedding in zip(sizes, self.level_embedding, strict=True)
                ]
            )
            reference_points = cell_centres(sizes, tokens.device)
            for layer in self.layers:
                tokens = layer(tokens, positions, reference_points, sizes)
            levels = [
                level.transpose(1, 2).unflatten(2, size)
                for level, size in zip(tokens.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
            ]
            top_down = functional.interpolate(levels[-1], finest.shape[-2:], mode="bilinear", align_corners=False)
            return self.mask_features(self.output(self.lateral(finest) + top_down)), levels
