"""Divisors of losses that count over all processes of a run."""

from __future__ import annotations

from torch import Tensor, distributed


def average_count(count: Tensor) -> Tensor:
    """Average a count over the processes of the run, so that their gradients add up as those of one large batch would.

    Args:
        count: Scalar, the count of this process.

    Returns:
        float scalar, at least 1.
    """
    count = count.float().clone()  # summed in place
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp(min=1)
