"""Recorded random numbers in place of fresh ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class ReplayedDraws:
    """Stands in for ``torch.rand`` and gives back recorded draws one after the other; each has to fit its request."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.draws = list(draws)

    def __call__(self, *shape: int, device: torch.device | str | None = None) -> Tensor:
        assert self.draws, f"a draw of shape {shape} was asked for, but none is recorded"
        draw = self.draws.pop(0)
        assert tuple(draw.shape) == shape, f"recorded a draw of {tuple(draw.shape)}, asked for {shape}"
        return draw.to(device) if device is not None else draw
