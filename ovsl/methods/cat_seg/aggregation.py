"""Cost aggregation: every class map over space, then every position over classes.

Maps are `(B, T, h, w, width)`: T classes, channels last. Appearance guides all classes and text all positions alike, so
guidance has a dimension of size one there and is broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.errors import InputError
from ovsl.layers import recompute


@dataclass(frozen=True)
class Chunks:
    """How many class maps are worked on at a time, where classes (or positions) do not depend on one another.

    Args:
        num_classes: Maps at a time in inference, and in training with `recompute`.
        recompute: Keep only the inputs of each chunk in training and compute the rest again for the gradient.
    """

    num_classes: int = 32
    recompute: bool = False

    def __call__(self, function: Callable[[Tensor], Tensor], maps: Tensor, size: int | None = None) -> Tensor:
        """Apply a function to chunks along the second dimension, `size` or `num_classes` of it at a time."""
        size = size or self.num_classes
        chunks = maps.split(size, dim=1)
        if torch.is_grad_enabled():
            return torch.cat([recompute(function, chunk) for chunk in chunks], 1) if self.recompute else function(maps)
        first = function(chunks[0])
        found = first.new_empty(len(maps), maps.shape[1], *first.shape[2:])
        found[:, :size] = first
        for index, chunk in enumerate(chunks[1:], start=1):
            found[:, index * size : (index + 1) * size] = function(chunk)
        return found


class GuidedLinear(nn.Linear):
    """A linear layer on `[tokens ; guidance]` that multiplies the two apart, so that guidance is not repeated.

    Args:
        width: Size of the tokens, in and out.
        guidance_width: Size of the guidance; 0 for none.
    """

    def __init__(self, width: int, guidance_width: int) -> None:
        super().__init__(width + guidance_width, width)

    def forward(self, tokens: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Tokens `(..., width)` and guidance `(..., guidance_width)` that broadcasts to them -> `(..., width)`."""
        if guidance is None:
            return super().forward(tokens)
        for_tokens, for_guidance = self.weight.split([tokens.shape[-1], guidance.shape[-1]], dim=1)
        return functional.linear(tokens, for_tokens, self.bias) + functional.linear(guidance, for_guidance)


def to_windows(maps: Tensor, window: int) -> Tensor:
    """`(B, T, h, w, C)` -> `(B, T, windows, window * window, C)`, row-major."""
    tiles = maps.unflatten(3, (-1, window)).unflatten(2, (-1, window)).transpose(3, 4)
    return tiles.flatten(4, 5).flatten(2, 3)


def from_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `to_windows`: `(B, T, windows, window * window, C)` -> `(B, T, h, w, C)`."""
    side = int(windows.shape[3] ** 0.5)
    tiles = windows.unflatten(3, (side, side)).unflatten(2, (size[0] // side, size[1] // side)).transpose(3, 4)
    return tiles.flatten(4, 5).flatten(2, 3)


def shift_mask(size: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """Keep a shifted window from attending across the border of the map: 0 or -100, `(windows, n, n)`."""
    steps = (torch.arange(side, device=device) for side in size)
    rows, columns = (
        (step >= side - window).long() + (step >= side - shift).long() for step, side in zip(steps, size, strict=True)
    )
    regions = (3 * rows[:, None] + columns)[None, None, :, :, None]
    windows = to_windows(regions, window)[0, 0, :, :, 0]
    return torch.where(windows[:, None, :] == windows[:, :, None], 0.0, -100.0)


class SwinBlock(nn.Module):
    """Attention inside windows of one class map, queries and keys guided by appearance; no positions.

    Args:
        width: Channels of the maps.
        guidance_width: Channels of the guidance; 0 for none.
        num_heads: Attention heads.
        window_size: Side of a window; a smaller map is one window.
        shifted: Whether windows are moved by half their side.
    """

    def __init__(self, width: int, guidance_width: int, num_heads: int, window_size: int, shifted: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.query = GuidedLinear(width, guidance_width)
        self.key = GuidedLinear(width, guidance_width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, maps: Tensor, guidance: Tensor | None) -> Tensor:
        """Take maps `(B, T, h, w, width)` and guidance `(B, 1, h, w, guidance_width)`, return maps.

        Raises:
            InputError: Windows do not tile the map.
        """
        size = (maps.shape[2], maps.shape[3])
        window, shift = self.window_size, self.window_size // 2 if self.shifted else 0
        if min(size) <= window:
            window, shift = min(size), 0
        if size[0] % window or size[1] % window:
            raise InputError(f"Windows of {window} cells do not tile a grid of {size[0]}x{size[1]}; set window_size.")

        def split(tensor: Tensor) -> Tensor:
            return to_windows(tensor.roll((-shift, -shift), (2, 3)) if shift else tensor, window)

        def heads(tokens: Tensor) -> Tensor:
            # (B, T, windows, n, width) -> (B * T, windows * heads, n, width / heads)
            return tokens.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(2, 3).flatten(1, 2)

        tokens = split(self.norm1(maps))
        around = None if guidance is None else split(guidance)
        mask = None
        if shift:
            mask = (
                shift_mask(size, window, shift, maps.device).to(tokens.dtype).repeat_interleave(self.num_heads, 0)[None]
            )
        mixed = functional.scaled_dot_product_attention(
            heads(self.query(tokens, around)), heads(self.key(tokens, around)), heads(self.value(tokens)), mask
        )
        mixed = mixed.unflatten(1, (-1, self.num_heads)).transpose(2, 3).flatten(3)
        mixed = from_windows(self.projection(mixed).unflatten(0, maps.shape[:2]), size)
        maps = maps + (mixed.roll((shift, shift), (2, 3)) if shift else mixed)
        return maps + self.mlp(self.norm2(maps))


class SpatialAggregation(nn.Module):
    """An unshifted and a shifted Swin block on every class map; parameters as for `SwinBlock`."""

    def __init__(self, width: int, guidance_width: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.guidance_norm = nn.LayerNorm(guidance_width) if guidance_width else None
        self.blocks = nn.ModuleList(
            SwinBlock(width, guidance_width, num_heads, window_size, shifted) for shifted in (False, True)
        )

    def forward(self, maps: Tensor, guidance: Tensor | None) -> Tensor:
        """See `SwinBlock`; the guidance comes before its norm."""
        if self.guidance_norm is not None:
            guidance = self.guidance_norm(guidance)
        for block in self.blocks:
            maps = block(maps, guidance)
        return maps


class ClassAttention(nn.Module):
    """Attention among the classes of one position, queries and keys guided by text; no output projection.

    Args:
        width: Channels of the maps.
        guidance_width: Channels of the guidance; 0 for none.
        num_heads: Attention heads.
        kind: `linear` (Katharopoulos et al., 2020, feature map elu + 1) or `full` (softmax).
    """

    def __init__(self, width: int, guidance_width: int, num_heads: int, kind: Literal["linear", "full"]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kind = kind
        self.query = GuidedLinear(width, guidance_width)
        self.key = GuidedLinear(width, guidance_width)
        self.value = nn.Linear(width, width)

    def forward(self, tokens: Tensor, guidance: Tensor | None, counts: Tensor) -> Tensor:
        """Attend.

        Args:
            tokens: `(B, N, R, width)`: R rows at each of N positions.
            guidance: `(B, N, R, guidance_width)`; B and N may be one.
            counts: How many equal rows each row stands for, `(R,)`.

        Returns:
            `(B, N, R, width)`.
        """
        query, key, value = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(2, 3)
            for projected in (self.query(tokens, guidance), self.key(tokens, guidance), self.value(tokens))
        )
        if self.kind == "linear":
            query, key = functional.elu(query) + 1, (functional.elu(key) + 1) * counts[:, None]
            weights = query @ key.sum(dim=-2).unsqueeze(-1) + 1e-6
            mixed = query @ (key.transpose(-1, -2) @ value) / weights
        else:
            mask = counts.log().expand(1, 1, len(counts), -1)
            mixed = functional.scaled_dot_product_attention(
                query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), mask
            ).unflatten(0, query.shape[:2])
        return mixed.transpose(2, 3).flatten(3)


class ClassAggregation(nn.Module):
    """Attention among classes on a pooled grid, filled up with a learned padding class to a fixed number of classes.

    All padding rows are alike, so one row that counts as many times stands for them.

    Args:
        width: Channels of the maps.
        guidance_width: Channels of the guidance; 0 for none.
        num_heads: Attention heads.
        kind: See `ClassAttention`.
        max_classes: Number of classes that padding fills up to; 0 for none.
    """

    def __init__(
        self, width: int, guidance_width: int, num_heads: int, kind: Literal["linear", "full"], max_classes: int
    ) -> None:
        super().__init__()
        self.max_classes = max_classes
        self.attention = ClassAttention(width, guidance_width, num_heads, kind)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, width)) if max_classes else None
        has_guidance = max_classes and guidance_width
        self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_width)) if has_guidance else None

    def forward(
        self, maps: Tensor, guidance: Tensor | None, pooling: tuple[int, int], chunks: Chunks, as_released: bool = False
    ) -> Tensor:
        """Aggregate.

        Args:
            maps: `(B, T, h, w, width)`.
            guidance: Of each class, `(B, 1, T, guidance_width)`; B may be one.
            pooling: Rows and columns that are averaged into one position.
            chunks: Positions are independent: as many go together as have the tokens of a chunk of classes.
            as_released: Repeat padding rows and guidance as the released code does; the result is the same.

        Returns:
            Maps of the same shape. They hold the input twice: attention's residual comes on top of the layer's own.
        """
        num_classes, size = maps.shape[1], maps.shape[2:4]
        is_pooled = pooling != (1, 1)
        pooled = resample(maps, lambda planes: functional.avg_pool2d(planes, pooling)) if is_pooled else maps
        counts, padding = pooled.new_ones(num_classes), None
        missing = max(self.max_classes - num_classes, 0)
        # Where nothing is missing, training has a row that counts for nothing: processes that train together wait for
        # the gradient of every parameter.
        if missing or (self.padding_tokens is not None and torch.is_grad_enabled() and not as_released):
            rows = missing if as_released else 1
            counts = torch.cat([counts, counts.new_full((rows,), missing / rows)])
            padding = self.padding_tokens.expand(-1, rows, -1)  # type: ignore[union-attr]
            if guidance is not None:
                repeated = self.padding_guidance.expand(len(guidance), 1, rows, -1)  # type: ignore[union-attr]
                guidance = torch.cat([guidance, repeated], dim=2)

        def aggregate(tokens: Tensor) -> Tensor:
            around = guidance
            if padding is not None:
                tokens = torch.cat([tokens, padding.expand(*tokens.shape[:2], -1, -1)], dim=2)
            if as_released and around is not None:
                around = around.expand(*tokens.shape[:2], -1, -1)
            tokens = tokens + self.attention(self.norm1(tokens), around, counts)
            return (tokens + self.mlp(self.norm2(tokens)))[:, :, :num_classes]

        tokens = pooled.flatten(2, 3).transpose(1, 2)
        positions = max(tokens.shape[1] * chunks.num_classes // num_classes, 1)
        found = chunks(aggregate, tokens, positions).transpose(1, 2).unflatten(2, pooled.shape[2:4])
        if is_pooled:
            found = resample(
                found, lambda planes: functional.interpolate(planes, size, mode="bilinear", align_corners=True)
            )
        # In place: for many classes, maps are the largest tensors that there are.
        found += maps
        return found


def resample(maps: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function on `(N, C, h, w)` to maps `(B, T, h, w, C)`."""
    planes = function(maps.flatten(0, 1).permute(0, 3, 1, 2))
    return planes.permute(0, 2, 3, 1).unflatten(0, maps.shape[:2])


class AggregatorLayer(nn.Module):
    """Spatial, then class aggregation; parameters as for the two."""

    def __init__(
        self,
        width: int,
        appearance_width: int,
        text_width: int,
        num_heads: int,
        window_size: int,
        class_attention: Literal["linear", "full"],
        max_classes: int,
    ) -> None:
        super().__init__()
        self.spatial = SpatialAggregation(width, appearance_width, num_heads, window_size)
        self.classes = ClassAggregation(width, text_width, num_heads, class_attention, max_classes)

    def forward(
        self,
        maps: Tensor,
        appearance: Tensor | None,
        text: Tensor | None,
        pooling: tuple[int, int],
        chunks: Chunks,
        as_released: bool = False,
    ) -> Tensor:
        """Take maps `(B, T, h, w, width)`, appearance `(B, 1, h, w, width)`, text `(B, 1, T, width)`, return maps."""

        def aggregate(chunk: Tensor) -> Tensor:
            repeated = appearance
            if as_released and appearance is not None:
                repeated = appearance.expand(-1, chunk.shape[1], -1, -1, -1)
            return self.spatial(chunk, repeated)

        return self.classes(chunks(aggregate, maps), text, pooling, chunks, as_released)
