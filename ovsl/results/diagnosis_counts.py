"""What a diagnosis was counted into: a file beside its result, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovsl.errors import InputError
from ovsl.results.arrays import beside, read_arrays, write_arrays

SUFFIX = ".diagnosis.npz"


@dataclass(frozen=True, eq=False)
class DiagnosisCounts:
    """Counts of pixels of one dataset of C classes; see `ovsl.evaluation.diagnosis`.

    Attributes:
        boundary: `ovsl.scores.PIXELS` of the bands along contours, int64 `(3, C)`.
        true_masks: `PIXELS` with true masks and predicted classes, likewise.
        true_classes: `PIXELS` with predicted masks and true classes; None where the method predicts no masks, and true
            masks were named by their mean scores and not by the query that overlaps each most.
        margins: Pixels of each class by the margin of the best seen class over the best unseen one, and those of them
            that are of that class, int64 `(2, C, BINS)`; None where no class is unseen. Below the margin's offset a
            pixel goes to the seen class, above it to the unseen one.
        similarity: Of the names of classes, float16 `(C, C)`.
    """

    boundary: np.ndarray
    true_masks: np.ndarray
    true_classes: np.ndarray | None
    margins: np.ndarray | None
    similarity: np.ndarray

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_arrays(path, {name: values for name, values in vars(self).items() if values is not None})

    @classmethod
    def read(cls, path: Path) -> DiagnosisCounts:
        """Read what `write` wrote.

        Raises:
            InputError: There is no such file, or it is none of these.
        """
        arrays = read_arrays(path, "counts of a diagnosis", "ovsl test --diagnosis true")
        try:
            optional = {name: arrays.pop(name, None) for name in ("true_classes", "margins")}
            return cls(**arrays, **optional)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"'{path}' does not hold counts of a diagnosis ({error}): test again.") from error


def diagnosis_file(result: Path) -> Path:
    """Where the counts of the diagnosis of a result file lie."""
    return beside(result, SUFFIX)
