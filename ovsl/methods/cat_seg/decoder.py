"""Upsampling of every class map on its own, guided by features of intermediate CLIP blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class GuidedConv2d(nn.Conv2d):
    """A 3x3 convolution on `[maps ; guidance]` that convolves the two apart: guidance is the same for every class."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, maps: Tensor, guidance: Tensor | None) -> Tensor:  # type: ignore[override]
        """Take maps `(B, T, C, h, w)` and guidance `(B, 1, G, h, w)`, return `(B, T, out_channels, h, w)`."""
        width = maps.shape[2]
        found = self._convolve(maps, self.weight[:, :width])
        return found if guidance is None else found + self._convolve(guidance, self.weight[:, width:])

    def _convolve(self, maps: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(maps.flatten(0, 1), weight, padding=1).unflatten(0, maps.shape[:2])


class UpsamplingBlock(nn.Module):
    """Doubles the side of every class map.

    Args:
        width: Channels in.
        out_width: Channels out; groups of 16 are normalised together.
        guidance_width: Channels of the guidance; 0 for none.
    """

    def __init__(self, width: int, out_width: int, guidance_width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width - guidance_width, 2, stride=2)
        self.conv1 = GuidedConv2d(width, out_width)
        self.norm1 = nn.GroupNorm(out_width // 16, out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(out_width // 16, out_width)

    def forward(self, maps: Tensor, guidance: Tensor | None) -> Tensor:
        """Take maps `(B, T, width, h, w)`, guidance `(B, 1, G, 2h, 2w)`, return `(B, T, out_width, 2h, 2w)`."""
        batch = maps.shape[:2]
        maps = self.conv1(self.up(maps.flatten(0, 1)).unflatten(0, batch), guidance).flatten(0, 1)
        maps = functional.relu(self.norm1(maps))
        return functional.relu(self.norm2(self.conv2(maps))).unflatten(0, batch)
