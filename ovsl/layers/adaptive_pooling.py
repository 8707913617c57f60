"""Adaptive maximum pooling whose size may vary in a compiled network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def adaptive_max_pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring maps `(B, C, H, W)` to `(B, C, *grid)` by `adaptive_max_pool2d`.

    Torch's compiler takes the grid of that for a constant, and compiles for every size of images. An operator of our
    own around it has a grid that varies; exported files know torch's operators alone.
    """
    if torch.compiler.is_exporting():
        return functional.adaptive_max_pool2d(maps, grid)
    return _pool(maps, list(grid))[0]


@torch.library.custom_op("ovsl::adaptive_max_pool", mutates_args=())
def _pool(maps: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    values, indices = functional.adaptive_max_pool2d(maps, (grid[0], grid[1]), return_indices=True)
    return values, indices


@_pool.register_fake
def _(maps: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    size = (*maps.shape[:2], *grid)
    return maps.new_empty(size), maps.new_empty(size, dtype=torch.int64)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
    maps, indices = ctx.saved_tensors
    return torch.ops.aten.adaptive_max_pool2d_backward(gradient, maps, indices), None


_pool.register_autograd(_differentiate, setup_context=_keep)
