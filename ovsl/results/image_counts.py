"""What every image of an evaluation adds to the counts: a small file beside its result, read without torch.

`<stage>-<dataset>.images.npz` holds one entry for each image and each class that occurs in it, in its truth or in what
was found, and one for each detection where mask AP was counted. Intervals and comparisons need no second run then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ovsl.detections import TRUTHS, AveragePrecisionRules, Detections
from ovsl.errors import InputError
from ovsl.results.arrays import beside, read_arrays, write_arrays
from ovsl.scores import ASKED, PIXELS, SEGMENTS

SUFFIX = ".images.npz"


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Sparse counts per image and class; `np.load` reads them too, by the names below.

    Attributes:
        images: Names of the images, ascending, `(N,)`.
        num_classes: C.
        image: Index of the image of each entry, ascending, `(E,)`.
        label: Class of each entry, ascending within an image, `(E,)`.
        columns: int64 `(E,)` by name: `ovsl.scores.PIXELS`, and `SEGMENTS` and `TRUTHS` where segments were counted,
            `ASKED` in episodes.
        detections: Where mask AP was counted.
    """

    images: np.ndarray
    num_classes: int
    image: np.ndarray
    label: np.ndarray
    columns: dict[str, np.ndarray]
    detections: Detections | None = None

    @classmethod
    def of(
        cls, ids: Sequence[str], tables: np.ndarray, names: Sequence[str], detections: Sequence[Detections] = ()
    ) -> ImageCounts:
        """Keep what is not zero.

        Args:
            ids: Name of each image.
            tables: Their counts, int64 `(N, len(names), C)`.
            names: What the rows of the tables are.
            detections: Of some or all of the images.
        """
        image, label = np.nonzero(tables.any(1))
        columns = {name: tables[image, row, label] for row, name in enumerate(names)}
        found = Detections.join(detections)
        return cls(np.asarray(ids, str), tables.shape[2], image, label, columns, found).sorted()

    @classmethod
    def join(cls, parts: Sequence[ImageCounts]) -> ImageCounts:
        """Put the images of several together, whoever counted them.

        Args:
            parts: At least one, with the same columns.
        """
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        return cls(
            np.concatenate([part.images for part in parts]),
            parts[0].num_classes,
            np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.label for part in parts]),
            {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
            Detections.join(
                [
                    part.detections.of_images(start)
                    for part, start in zip(parts, starts, strict=False)
                    if part.detections is not None
                ]
            ),
        ).sorted()

    def sorted(self) -> ImageCounts:
        """Images in the order of their names, entries in the order of images and classes."""
        order = np.argsort(self.images, kind="stable")
        place = np.argsort(order, kind="stable")
        image, detections = place[self.image], self.detections
        entries = np.lexsort((self.label, image))
        columns = {name: values[entries] for name, values in self.columns.items()}
        if detections is not None:
            detections = replace(detections, image=place[detections.image])
        found = replace(self, images=self.images[order], image=image[entries], label=self.label[entries])
        return replace(found, columns=columns, detections=detections)

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
        found = {} if self.detections is None else vars(self.detections)
        detections = {f"detection_{name}": np.asarray(values) for name, values in found.items()}
        write_arrays(path, own | {"label": self.label, **self.columns, **detections})

    @classmethod
    def read(cls, path: Path) -> ImageCounts:
        """Read what `write` wrote.

        Raises:
            InputError: There is no such file, or it is none of these.
        """
        arrays = read_arrays(path, "counts per image", "ovsl test")
        columns = {name: arrays[name] for name in (*PIXELS, *SEGMENTS, *TRUTHS, *ASKED) if name in arrays}
        try:
            detections = _detections(arrays) if "detection_rules" in arrays else None
            own = (arrays["images"], int(arrays["num_classes"]), arrays["image"], arrays["label"])
            return cls(*own, columns, detections)
        except KeyError as error:
            raise InputError(f"'{path}' does not hold counts per image: it lacks {error}.") from error


def counts_file(result: Path) -> Path:
    """Where the counts per image of a result file lie."""
    return beside(result, SUFFIX)


def _detections(arrays: Mapping[str, np.ndarray]) -> Detections:
    image, label, score, codes = (arrays[f"detection_{name}"] for name in ("image", "label", "score", "codes"))
    rules: AveragePrecisionRules = "cityscapes" if str(arrays["detection_rules"]) == "cityscapes" else "coco"
    return Detections(image, label, score, codes.astype(np.uint8), rules)
