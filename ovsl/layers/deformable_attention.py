"""Multi-scale deformable attention: sampling in plain PyTorch, and by a kernel where there is a GPU for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiScaleDeformableAttention(nn.Module):
    """Every query looks at a few learned points around its own place on every level.

    Zhu et al.: *Deformable DETR*, ICLR 2021, https://arxiv.org/abs/2010.04159, equation 3. Sampling is bilinear with
    zeros outside the map: no compiled extension, no graph break under `torch.compile`.

    Args:
        width: Size of queries and values.
        num_heads: Number of heads; divides `width`.
        num_levels: Number of feature maps.
        num_points: Points per head and level.
    """

    def __init__(self, width: int = 256, num_heads: int = 8, num_levels: int = 3, num_points: int = 4) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(width, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(width, num_heads * num_levels * num_points)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)
        self.kernel = kernel()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h starts with points in direction `2 pi h / heads`, one pixel further for each point."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = (directions[:, None, None] * steps[:, None]).expand(-1, self.num_levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, value: Tensor, reference_points: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend.

        Args:
            query: `(B, N, width)`.
            value: Tokens of all levels, level after level, each row by row: `(B, S, width)`.
            reference_points: Place `(x, y)` of each query in 0..1: `(N, 2)`; a constant.
            sizes: `(height, width)` of each level.

        Returns:
            `(B, N, width)`.
        """
        batch, length, width = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).view(batch, length, heads, levels, points, 2)
        weights = self.attention_weights(query).view(batch, length, heads, levels * points).softmax(-1)
        values = self.value_projection(value).unflatten(2, (heads, width // heads))
        weights = weights.view(batch, length, heads, levels, points)
        mixed = self.sampling(values)(values, reference_points, offsets, weights, sizes)
        return self.output_projection(mixed.flatten(2))

    def sampling(self, values: Tensor) -> Sampling:
        """Choose the kernel where it says the same: on a GPU, in float32, where runs need not be equal to the bit."""
        fits = values.is_cuda and values.dtype == torch.float32 and not torch.are_deterministic_algorithms_enabled()
        return self.kernel if self.kernel is not None and fits else sample_levels


class Sampling(Protocol):
    """What the plain form and the kernel have in common, see `sample_levels`."""

    def __call__(
        self, values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Sample and sum."""


def sample_levels(
    values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Sum what every query and head sees around its place, bilinear with zeros outside; the reference form.

    Args:
        values: Tokens of all L levels, level after level, each row by row, by heads: `(B, S, heads, channels)`.
        references: Place `(x, y)` of each query in 0..1: `(N, 2)`.
        offsets: From there to each point, in cells of the level: `(B, N, heads, L, points, 2)`.
        weights: Of the points: `(B, N, heads, L, points)`.
        sizes: `(height, width)` of each level.

    Returns:
        `(B, N, heads, channels)`.
    """
    batch, length, heads, levels, points = weights.shape
    channels = values.shape[3]
    # Heads become part of the batch: grid_sample gives each its own points.
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, length, levels, points)
    by_head = values.flatten(2).transpose(1, 2).reshape(batch * heads, channels, -1)
    mixed = values.new_zeros(batch * heads, channels, length)
    for level, level_values in enumerate(by_head.split([h * w for h, w in sizes], dim=2)):
        height, columns = sizes[level]
        # The size stays a number of the host: a tensor made of it would be a copy for which the host waits.
        x, y = offsets[:, :, :, level].unbind(-1)
        places = references[:, None, None] + torch.stack([x / columns, y / height], dim=-1)
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        sampled = functional.grid_sample(
            level_values.unflatten(2, (height, columns)), grid, padding_mode="zeros", align_corners=False
        )
        mixed = mixed + (sampled * weights[:, :, :, level]).sum(-1)
    return mixed.view(batch, heads, channels, length).permute(0, 3, 1, 2)


def kernel() -> Sampling | None:
    """Return the form for GPUs where there is one that Triton serves, else None."""
    if not (torch.cuda.is_available() and find_spec("triton")):
        return None
    from ovsl.layers import deformable_kernel

    return deformable_kernel.sample_levels


def cell_centres(sizes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Tensor:
    """Centres `(x, y)` in 0..1 of the cells of several levels, level after level, row by row: `(S, 2)`."""
    centres = []
    for height, width in sizes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        centres.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2).flatten(0, 1))
    return torch.cat(centres)
