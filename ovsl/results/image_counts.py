"""What every image of an evaluation adds to the counts: a small file beside its result, read without torch.

`<stage>-<dataset>.images.npz` holds one entry for each image and each class that occurs in it, in its truth or in what
was found. Intervals and comparisons need no second run then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ovsl.errors import InputError
from ovsl.results.arrays import beside, read_arrays, write_arrays
from ovsl.scores import PIXELS, SEGMENTS

SUFFIX = ".images.npz"


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Sparse counts per image and class; `np.load` reads them too, by the names below.

    Attributes:
        images: Names of the images, ascending, `(N,)`.
        num_classes: C.
        image: Index of the image of each entry, ascending, `(E,)`.
        label: Class of each entry, ascending within an image, `(E,)`.
        columns: int64 `(E,)` by name: `ovsl.scores.PIXELS`, and `SEGMENTS` where segments were counted.
    """

    images: np.ndarray
    num_classes: int
    image: np.ndarray
    label: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, ids: Sequence[str], tables: np.ndarray, names: Sequence[str]) -> ImageCounts:
        """Keep what is not zero.

        Args:
            ids: Name of each image.
            tables: Their counts, int64 `(N, len(names), C)`.
            names: What the rows of the tables are.
        """
        image, label = np.nonzero(tables.any(1))
        columns = {name: tables[image, row, label] for row, name in enumerate(names)}
        return cls(np.asarray(ids, str), tables.shape[2], image, label, columns).sorted()

    @classmethod
    def join(cls, parts: Sequence[ImageCounts]) -> ImageCounts:
        """Put the images of several together, whoever counted them.

        Args:
            parts: At least one, with the same columns.
        """
        starts = np.cumsum([0, *(len(part) for part in parts)])
        return cls(
            np.concatenate([part.images for part in parts]),
            parts[0].num_classes,
            np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.label for part in parts]),
            {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        ).sorted()

    def sorted(self) -> ImageCounts:
        """Images in the order of their names, entries in the order of images and classes."""
        order = np.argsort(self.images, kind="stable")
        image = np.argsort(order, kind="stable")[self.image]
        entries = np.lexsort((self.label, image))
        columns = {name: values[entries] for name, values in self.columns.items()}
        return replace(
            self, images=self.images[order], image=image[entries], label=self.label[entries], columns=columns
        )

    def __len__(self) -> int:
        return len(self.images)

    def dense(self, name: str) -> np.ndarray:
        """One column as int64 `(N, C)`."""
        table = np.zeros((len(self), self.num_classes), np.int64)
        table[self.image, self.label] = self.columns[name]
        return table

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        own = {"images": self.images, "num_classes": np.array(self.num_classes), "image": self.image}
        write_arrays(path, own | {"label": self.label, **self.columns})

    @classmethod
    def read(cls, path: Path) -> ImageCounts:
        """Read what `write` wrote.

        Raises:
            InputError: There is no such file, or it is none of these.
        """
        arrays = read_arrays(path, "counts per image", "ovsl test")
        columns = {name: arrays[name] for name in (*PIXELS, *SEGMENTS) if name in arrays}
        try:
            return cls(arrays["images"], int(arrays["num_classes"]), arrays["image"], arrays["label"], columns)
        except KeyError as error:
            raise InputError(f"'{path}' does not hold counts per image: it lacks {error}.") from error


def counts_file(result: Path) -> Path:
    """Where the counts per image of a result file lie."""
    return beside(result, SUFFIX)
