"""Which class was taken for which: a small file beside a result, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovsl.errors import InputError
from ovsl.results.arrays import beside, read_arrays, write_arrays

SUFFIX = ".confusion.npz"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixels by their true and their predicted class, those that are not zero.

    Attributes:
        num_classes: C.
        truth: True class of each entry, `(E,)`.
        prediction: Predicted class of each entry, `(E,)`.
        pixels: Pixels of each entry, `(E,)`.
    """

    num_classes: int
    truth: np.ndarray
    prediction: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray) -> Confusion:
        """Keep what is not zero of a table `(C, C)`, true classes in its rows."""
        truth, prediction = np.nonzero(table)
        return cls(len(table), truth, prediction, table[truth, prediction])

    def dense(self) -> np.ndarray:
        """Give the table, int64 `(C, C)`, true classes in its rows."""
        table = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        table[self.truth, self.prediction] = self.pixels
        return table

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_arrays(path, {**vars(self), "num_classes": np.array(self.num_classes)})

    @classmethod
    def read(cls, path: Path) -> Confusion:
        """Read what `write` wrote.

        Raises:
            InputError: There is no such file, or it is none of these.
        """
        arrays = read_arrays(path, "confusion of classes", "ovsl test")
        try:
            return cls(int(arrays.pop("num_classes")), **arrays)
        except (KeyError, TypeError) as error:
            raise InputError(f"'{path}' does not hold a confusion of classes ({error}): test again.") from error


def confusion_file(result: Path) -> Path:
    """Where the confusion of a result file lies."""
    return beside(result, SUFFIX)


def most_confused(table: np.ndarray, most: int) -> list[int]:
    """Choose the classes with the most pixels that are wrong, by their truth or by what was found.

    Args:
        table: Pixels `(C, C)`, true classes in its rows.
        most: How many at most.

    Returns:
        Their labels, the most confused first; classes that are never wrong are left out.
    """
    wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
    return [int(label) for label in np.argsort(-wrong, kind="stable")[:most] if wrong[label]]
