"""Where local data lies, and which Parquet files make a split."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ovsl.errors import InputError

_NUMBERED = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet$")


def data_folder() -> Path:
    """Folder of all data: what the environment variable `OVSL_DATA` names, else `data`."""
    return Path(os.environ.get("OVSL_DATA", "data"))


def locate(pattern: str) -> Path:
    """Take a path as given where it exists, otherwise below the folder of all data, if it exists there."""
    given = Path(pattern).expanduser()
    stored = data_folder() / given
    return stored if not given.exists() and stored.exists() else given


def parquet_files(pattern: Path, split: str) -> list[Path]:
    """Files of a split: `<split>-*.parquet`, `<split>.parquet` or `<split>/*.parquet`, also under `data/`.

    Args:
        pattern: Folder, file, or glob pattern, which stands for the files that it matches.
        split: Split whose files are taken from a folder.

    Raises:
        InputError: There is none, or some of a numbered set are missing.
    """
    if pattern.is_dir():
        patterns = [f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"]
        found = [file for top in (pattern, pattern / "data") for p in patterns for file in sorted(top.glob(p))]
        shards = sorted(pattern.glob("*.parquet")) + sorted((pattern / "data").glob("*.parquet"))
        if not found and shards:
            splits = sorted({file.name.split("-0")[0].removesuffix(".parquet") for file in shards})
            raise InputError(f"Folder '{pattern}' has no split '{split}': use one of {', '.join(splits)}.")
        _check_complete(found)
    else:
        found = sorted(Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor))))
    if not found:
        raise InputError(
            f"No Parquet file matches '{pattern}' (split '{split}'): check the path of the data, or set "
            "OVSL_DATA to the folder that holds it."
        )
    return found


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse a part of the files `<split>-<number>-of-<count>.parquet`, which a broken copy leaves."""
    present = {file.name for file in files}
    for file in files:
        if (named := _NUMBERED.match(file.name)) is None:
            continue
        split, count = named["split"], named["count"]
        expected = [f"{split}-{number:05d}-of-{count}.parquet" for number in range(int(count))]
        if missing := [name for name in expected if name not in present]:
            raise InputError(
                f"{len(missing)} of the {len(expected)} files of split '{split}' are missing in "
                f"'{file.parent}', the first is '{missing[0]}': copy or make the data again."
            )
