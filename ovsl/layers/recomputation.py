"""Activations that are computed twice instead of kept for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recompute(function: Callable[..., T], *inputs: Any) -> T:
    """Call a function of which the gradient keeps the inputs alone; the function may not draw random numbers."""
    found: T = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found
