"""Training images without labels."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from ovsl.data.image_files import images_below
from ovsl.data.sources import Row, Source, decode_pixels
from ovsl.errors import InputError


class ImageFolder(Source):
    """All images below a folder, or some of them drawn once, for methods that train without labels.

    Every pixel is ignored.

    Args:
        folder: The folder, searched at any depth.
        draw: Number of images drawn, with replacement; None takes each once.
        seed: Seed of the draw, `numpy.random.choice` over the sorted files.
    """

    def __init__(self, folder: str, draw: int | None = None, seed: int = 0) -> None:
        self.folder = Path(folder)
        self.draw = draw
        self.seed = seed
        self.name = f"folder {folder!r}"

    @cached_property
    def files(self) -> list[Path]:
        """The files, in the order of the rows.

        Raises:
            InputError: There is no image.
        """
        # In the order of their names, which a seed draws from.
        files = sorted(images_below(self.folder))
        if not files:
            raise InputError(f"There is no image below the {self.name}; give the folder of the training images.")
        if self.draw is None:
            return files
        return [files[index] for index in np.random.RandomState(self.seed).choice(len(files), self.draw)]

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> Row:
        """Read one file; see `Source.row`."""
        file = self.files[index]
        image = decode_pixels(file.read_bytes(), f"image '{file}'", mode="RGB")
        unlabelled = np.full(image.shape[:2], self.ignore_index, np.uint8)
        return Row(str(file.relative_to(self.folder)), image, unlabelled, str(file))
