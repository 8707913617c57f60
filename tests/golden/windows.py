"""Windows of official configurations, which need not be square."""

from __future__ import annotations

from collections.abc import Sequence

from ovsl.inference import SlidingWindow


class RectangularWindow(SlidingWindow):
    """A `SlidingWindow` with a crop and a stride for each axis, both `(height, width)`."""

    def __init__(self, crop: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(crop[0], stride[0])
        self.rows, self.columns = (SlidingWindow(*pair) for pair in zip(crop, stride, strict=True))

    def windows(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        rows = [(y1, y2) for y1, _, y2, _ in self.rows.windows(height, 1)]
        columns = [(x1, x2) for _, x1, _, x2 in self.columns.windows(1, width)]
        return [(y1, x1, y2, x2) for y1, y2 in rows for x1, x2 in columns]
