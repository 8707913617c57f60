"""Padding to the sizes that strides need."""

from torch import Tensor
from torch.nn import functional


def pad_to_multiple(maps: Tensor, divisor: int, value: float = 0) -> Tensor:
    """Pad `(..., H, W)` at the bottom and right so that the divisor divides both sides."""
    height, width = maps.shape[-2:]
    return functional.pad(maps, (0, -width % divisor, 0, -height % divisor), value=value)
