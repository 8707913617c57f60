"""Arrays of counts as small files, read by NumPy alone."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ovsl.errors import InputError
from ovsl.runs.files import whole_file


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an NPZ file, whole or not at all; non-negative integers take as few bytes as they need."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **{name: _narrow(values) for name, values in arrays.items()})  # type: ignore[arg-type]


def read_arrays(path: Path, what: str, verb: str) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote; integers become int64 again.

    Args:
        path: The file.
        what: What it holds, for messages.
        verb: The command that makes it.

    Raises:
        InputError: There is no such file, or it is none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except FileNotFoundError as error:
        raise InputError(f"There are no {what} at '{path}': make them with `{verb}`.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}' does not hold {what} ({error}): make it again with `{verb}`.") from error
    return {name: values.astype(np.int64) if values.dtype.kind == "u" else values for name, values in arrays.items()}


def beside(result: Path, suffix: str) -> Path:
    """Where what belongs to a result file lies: `test-toy<suffix>` beside `test-toy.json`."""
    return result.with_name(result.name.removesuffix(".json") + suffix)


def _narrow(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0:
        return values
    return values.astype(np.min_scalar_type(values.max(initial=0)))
