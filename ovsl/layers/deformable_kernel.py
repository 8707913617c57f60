"""Sampling of multi-scale deformable attention in one pass over each level, by Triton; importing it needs Triton.

The plain form, `ovsl.layers.deformable_attention.sample_levels`, writes every sample and reads it again. Here samples
stay in registers. Both are the same function; Triton's interpreter (`TRITON_INTERPRET=1`) shows it without a GPU.
"""

# Triton reads the annotations of kernels itself, and knows `constexpr` alone.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

QUERIES = 16
"""Queries of one program."""

_SIZES = ("num_queries", "num_tokens", "first", "height", "columns")
"""Numbers that change with the images: kernels are not compiled again for them."""


@triton.jit
def _places(
    references, offsets, weights, pair, query, known, columns, height,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, POINT: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    # Place of one point of each query in cells of the level, its weight, and where both are stored.
    place = (pair * LEVELS + LEVEL) * POINTS + POINT
    x = tl.load(references + 2 * query, known, 0.0) * columns + tl.load(offsets + 2 * place, known, 0.0) - 0.5
    y = tl.load(references + 2 * query + 1, known, 0.0) * height + tl.load(offsets + 2 * place + 1, known, 0.0) - 0.5
    return x, y, tl.load(weights + place, known, 0.0), place


@triton.jit
def _cell(x, y, known, columns, height, WIDTH: tl.constexpr):
    # Index of a cell of the level, and whether there is one: also asked of places too far away for an integer.
    inside = known & (x >= 0) & (x < columns) & (y >= 0) & (y < height)
    column, row = tl.where(inside, x, 0.0).to(tl.int32), tl.where(inside, y, 0.0).to(tl.int32)
    return (row * columns + column) * WIDTH, inside


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    values, references, offsets, weights, mixed,
    num_queries, num_tokens, first, height, columns,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: some queries of one head of one image; adds what they see on one level.
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    known, here = query < num_queries, channel < CHANNELS
    pair = (image * num_queries + query) * HEADS + head
    values += ((image * num_tokens + first) * HEADS + head) * CHANNELS
    target = mixed + pair[:, None] * CHANNELS + channel[None, :]
    total = tl.load(target, known[:, None] & here[None, :], 0.0)
    for point in tl.static_range(POINTS):
        x, y, weight, _ = _places(
            references, offsets, weights, pair, query, known, columns, height, LEVEL, LEVELS, point, POINTS
        )
        left, top = tl.floor(x), tl.floor(y)
        for corner in tl.static_range(4):
            column, row = left + corner % 2, top + corner // 2
            cell, inside = _cell(column, row, known, columns, height, HEADS * CHANNELS)
            share = weight * (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
            sample = tl.load(values + cell[:, None] + channel[None, :], inside[:, None] & here[None, :], 0.0)
            total += tl.where(inside, share, 0.0)[:, None] * sample
    tl.store(target, total, known[:, None] & here[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    gradient, values, references, offsets, weights, values_gradient, offsets_gradient, weights_gradient,
    num_queries, num_tokens, first, height, columns,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    known, here = query < num_queries, channel < CHANNELS
    pair = (image * num_queries + query) * HEADS + head
    start = ((image * num_tokens + first) * HEADS + head) * CHANNELS
    incoming = tl.load(gradient + pair[:, None] * CHANNELS + channel[None, :], known[:, None] & here[None, :], 0.0)
    for point in tl.static_range(POINTS):
        x, y, weight, place = _places(
            references, offsets, weights, pair, query, known, columns, height, LEVEL, LEVELS, point, POINTS
        )
        left, top = tl.floor(x), tl.floor(y)
        of_weight, of_x, of_y = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        for corner in tl.static_range(4):
            column, row = left + corner % 2, top + corner // 2
            cell, inside = _cell(column, row, known, columns, height, HEADS * CHANNELS)
            near_x, near_y = 1 - tl.abs(x - column), 1 - tl.abs(y - row)
            where = start + cell[:, None] + channel[None, :]
            mask = inside[:, None] & here[None, :]
            # Of a corner that is not there the product is zero, and so is all that follows from it.
            product = tl.sum(incoming * tl.load(values + where, mask, 0.0), 1)
            share = tl.where(inside, near_x * near_y, 0.0)
            of_weight += share * product
            of_x += (2 * (corner % 2) - 1) * near_y * product
            of_y += (2 * (corner // 2) - 1) * near_x * product
            tl.atomic_add(values_gradient + where, (weight * share)[:, None] * incoming, mask)
        tl.store(weights_gradient + place, of_weight, known)
        tl.store(offsets_gradient + 2 * place, weight * of_x, known)
        tl.store(offsets_gradient + 2 * place + 1, weight * of_y, known)


def _launches(values: Tensor, offsets: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Any, tuple[int, ...], Any]]:
    """Grid, sizes and constants of the launch for each level."""
    batch, num_tokens, heads, channels = values.shape
    num_queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    grid, first = (triton.cdiv(num_queries, QUERIES), heads, batch), 0
    for level in range(levels):
        height, columns = sizes[2 * level], sizes[2 * level + 1]
        constants = {
            "HEADS": heads, "CHANNELS": channels, "PADDED": triton.next_power_of_2(channels),
            "LEVEL": level, "LEVELS": levels, "POINTS": points, "BLOCK": QUERIES,
        }  # fmt: skip
        yield grid, (num_queries, num_tokens, first, height, columns), constants
        first += height * columns


# Operators of their own: the compiler of networks takes them as they are, without a graph break.
@torch.library.custom_op("ovsl::sample_levels", mutates_args=())
def _sample_levels(
    values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[int]
) -> Tensor:
    values, references, offsets, weights = (t.contiguous() for t in (values, references, offsets, weights))
    mixed = values.new_zeros(*offsets.shape[:3], values.shape[3])
    for grid, numbers, constants in _launches(values, offsets, sizes):
        _forward[grid](values, references, offsets, weights, mixed, *numbers, **constants)
    return mixed


@_sample_levels.register_fake
def _(values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    return values.new_empty(*offsets.shape[:3], values.shape[3])


@torch.library.custom_op("ovsl::sample_levels_backward", mutates_args=())
def _sample_levels_backward(
    gradient: Tensor, values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = [t.contiguous() for t in (gradient, values, references, offsets, weights)]
    found = torch.zeros_like(inputs[1]), torch.empty_like(inputs[3]), torch.empty_like(inputs[4])
    for grid, numbers, constants in _launches(values, offsets, sizes):
        _backward[grid](*inputs, *found, *numbers, **constants)
    return found


@_sample_levels_backward.register_fake
def _(
    gradient: Tensor, values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return values.new_empty(values.shape), offsets.new_empty(offsets.shape), weights.new_empty(weights.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = _sample_levels_backward(gradient, *ctx.saved_tensors, ctx.sizes)
    return found[0], None, found[1], found[2], None


_sample_levels.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.ovsl.sample_levels)
def _flops(values: torch.Size, references: torch.Size, offsets: torch.Size, *rest: Any, **keywords: Any) -> int:
    # One product for each channel of each sample; the interpolation itself is left out, as in publications.
    return offsets.numel() * values[3]


def sample_levels(
    values: Tensor, references: Tensor, offsets: Tensor, weights: Tensor, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Do what `ovsl.layers.deformable_attention.sample_levels` does, in float32; references get no gradient."""
    return _sample_levels(values, references, offsets, weights, [side for size in sizes for side in size])
