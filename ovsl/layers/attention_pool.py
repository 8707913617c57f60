"""CLIP's attention pooling, kept at every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovsl.layers.attention import attend
from ovsl.layers.positions import interpolate_positions


class DenseAttentionPool(nn.Module):
    """Self-attention over the cells of a map and their mean, projected to the joint image-text space.

    DenseCLIP, section 3.2. The parameters are those of the pool of CLIP's ResNets; no residual and no norm.

    Args:
        channels: Channels of the map.
        out_channels: Size of the joint space.
        num_heads: Attention heads.
        grid: Side of the stored square position grid, resized bilinearly to the map at every call.
    """

    def __init__(self, channels: int, out_channels: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(grid * grid + 1, channels) / channels**0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, out_channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, C, h, w)` -> embedding of the image `(B, D)` and of its cells `(B, D, h, w)`."""
        grid = (features.shape[2], features.shape[3])
        cells = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
        tokens = tokens + interpolate_positions(self.positional_embedding, grid, "bilinear")
        mixed = attend(self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens), self.num_heads)
        embedded = self.c_proj(mixed)
        return embedded[:, 0], embedded[:, 1:].transpose(1, 2).unflatten(2, grid)
