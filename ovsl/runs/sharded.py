"""Tensors that are spread over processes, and what stands for them in a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that is spread over processes, all of which have to ask; others are given as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_host(state: Any) -> Any:
    """Gather every tensor of a nested state, one after the other, into host memory."""
    if isinstance(state, Tensor):
        return whole(state).cpu()
    if isinstance(state, dict):
        return {key: whole_on_host(value) for key, value in state.items()}
    return state


def spread_like(value: Any, tensor: Tensor) -> Any:
    """Spread a whole tensor, which every process has, as another of its shape is spread."""
    if isinstance(tensor, DTensor) and isinstance(value, Tensor) and value.shape == tensor.shape:
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value
