"""Maps made a few rows at a time, channels last, so that none is held at full size for all queries or classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]

# Numbers in a band of rows: about a processor's cache; an accelerator wants fewer and larger pieces of work.
_BAND_NUMBERS = {"cpu": 1 << 22}
_ACCELERATOR_BAND_NUMBERS = 1 << 26
# Fewer rows would be resized again and again, since neighbouring bands read the same source rows.
_LEAST_ROWS = 8


@dataclass(frozen=True)
class Rows:
    """A map `(B, H, W, C)` of which any band of rows can be made.

    Channels are last, so that the best class of a pixel is the largest of neighbouring numbers, and the product of
    masks and classes one matrix product over pixels.

    Attributes:
        size: `(H, W)`.
        band: Gives rows `first` to `last`, the end left out: `(B, last - first, W, C)`.
    """

    size: Size
    band: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, maps: Tensor) -> Rows:
        """Take the rows of `maps`, `(B, C, h, w)`."""
        pixels = maps.permute(0, 2, 3, 1).contiguous()
        return cls((maps.shape[2], maps.shape[3]), lambda first, last: pixels[:, first:last])

    def whole(self) -> Tensor:
        """Make the whole map at once, `(B, C, H, W)`."""
        return self.band(0, self.size[0]).permute(0, 3, 1, 2)

    def then(self, pixelwise: Callable[[Tensor], Tensor]) -> Rows:
        """Apply a function of pixels, `(B, r, W, C)` -> `(B, r, W, C')`."""
        return Rows(self.size, lambda first, last: pixelwise(self.band(first, last)))

    def cropped(self, size: Size, top: int = 0, left: int = 0) -> Rows:
        """Keep what lies within `size` from a corner on."""
        return Rows(size, lambda first, last: self.band(top + first, top + last)[:, :, left : left + size[1]])

    def resized(self, size: Size) -> Rows:
        """Resize as `ovsl.inference.resize` does: bilinear, `align_corners=False`; nothing at the same size."""
        if self.size == size:
            return self
        return Rows(size, lambda first, last: self._resized_band(first, last, size))

    def _resized_band(self, first: int, last: int, size: Size) -> Tensor:
        height = self.size[0]
        if height == size[0]:
            band = self.band(first, last)
        elif (first, last) == (0, size[0]):
            return _interpolate(self.band(0, height), size)
        else:
            # Found on the processor for the ends and on the device for all rows, lest the host wait.
            start = int(_neighbours(first, first + 1, height, size[0])[0])
            end = int(_neighbours(last - 1, last, height, size[0])[1]) + 1
            source = self.band(start, end)
            above, below, share = _neighbours(first, last, height, size[0], source.device)
            band = torch.lerp(
                source.index_select(1, above - start),
                source.index_select(1, below - start),
                share[:, None, None].to(source.dtype),
            )
        return _interpolate(band, (last - first, size[1]))

    def labels(self, num_channels: int) -> Tensor:
        """Find the best channel of every pixel, the first of equal ones.

        Args:
            num_channels: The most channels that a band has on its way: queries or classes.

        Returns:
            int64 `(B, H, W)`.
        """
        return torch.cat([band.argmax(-1) for band in self.bands(num_channels)], dim=1)

    def bands(self, num_channels: int) -> Iterator[Tensor]:
        """Give all rows from top to bottom, as many at a time as are held without harm.

        Args:
            num_channels: See `labels`.

        Yields:
            `(B, r, W, C)`.
        """
        first = self.band(0, 1)
        numbers = _BAND_NUMBERS.get(first.device.type, _ACCELERATOR_BAND_NUMBERS)
        rows = max(_LEAST_ROWS, numbers // (len(first) * self.size[1] * num_channels))
        for start in range(0, self.size[0], rows):
            yield self.band(start, min(start + rows, self.size[0]))


def _neighbours(
    first: int, last: int, length: int, new_length: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Where positions `first` to `last` of a resized axis lie: the index before, the one after, the share of that."""
    positions = torch.arange(first, last, dtype=torch.float32, device=device)
    positions = ((positions + 0.5) * (length / new_length) - 0.5).clamp(min=0)
    before = positions.long()
    return before, (before + 1).clamp(max=length - 1), positions - before


def _interpolate(pixels: Tensor, size: Size) -> Tensor:
    """Resize `(B, h, w, C)`."""
    if pixels.shape[1:3] == size:
        return pixels
    maps = functional.interpolate(pixels.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return maps.permute(0, 2, 3, 1)
