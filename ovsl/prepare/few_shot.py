"""FSS-1000: a folder of ten images for each class, whose masks say where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovsl.prepare.layout import Item, Labelled, Layout, Places, picture

BOUNDS = {"train": (1, 521), "validation": (521, 761), "test": (761, 1001)}
"""Classes of each split: the vocabulary lists them split by split."""

FOREGROUND = 128
"""Grey level from which a pixel is of the class."""


@dataclass(frozen=True)
class FSS1000(Layout):
    """`fewshot_data/<class>/<number>.jpg` and `.png`; classes are folders, with underscores for blanks."""

    def places(self, part: str) -> Places:
        """See `Layout`; the folder of the first class stands for all."""
        first, _ = BOUNDS[part]
        return {"first": [self._folder(first)]}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`."""
        items = []
        for index in range(*BOUNDS[part]):
            folder = found["first"].with_name(self._folder(index))
            # A class without a folder is a file that is missing.
            stems = {file.stem for file in folder.glob("*.*") if file.suffix in (".jpg", ".png")} or {"1"}
            items += [
                Item(f"{folder.name}/{stem}", folder / f"{stem}.jpg", {"semantic": folder / f"{stem}.png"}, index)
                for stem in sorted(stems)
            ]
        return items

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`; masks are read as grey pictures, as their benchmarks do."""
        grey = np.asarray(Image.fromarray(picture(item.labels["semantic"])).convert("L"))
        return Labelled(np.where(grey >= FOREGROUND, item.annotation, 0).astype(np.uint16))

    def _folder(self, index: int) -> str:
        return self.words().classes[index].replace(" ", "_")


def fss_1000() -> Layout:
    """Give FSS-1000."""
    return FSS1000(
        "FSS-1000",
        "fss_1000",
        tops=("", "fewshot_data", "FSS-1000", "FSS-1000/data"),
        parts={split: split for split in BOUNDS},
    )
