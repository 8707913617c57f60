"""Small Parquet shards for the tests."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# Uneven on purpose: 87 rows in 5 shards, in row groups of at most 10.
TRAIN = (30, 20, 20, 10, 7)
VALIDATION = (9, 4)


def png(array: np.ndarray) -> bytes:
    """Encode an array as PNG."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def record(split: str, number: int, size: tuple[int, int] = (24, 32)) -> dict:
    """A row whose picture and mask depend on its number; labels are 0..10 and 255."""
    draw = np.random.default_rng(number)
    return {
        "image_id": f"{split}-{number:03d}",
        "image": {"bytes": png(draw.integers(0, 256, (*size, 3), dtype=np.uint8)), "path": None},
        "mask": {"bytes": png(draw.choice([*range(11), 255], size).astype(np.uint8)), "path": None},
    }


def write_shard(path: Path, rows: Sequence[dict]) -> None:
    """Write rows as one shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=10)


def write_shards(folder: Path) -> None:
    """Write the splits ``train`` and ``validation``."""
    for split, sizes in (("train", TRAIN), ("validation", VALIDATION)):
        first = 0
        for shard, size in enumerate(sizes):
            rows = [record(split, number) for number in range(first, first + size)]
            write_shard(folder / f"{split}-{shard:05d}-of-{len(sizes):05d}.parquet", rows)
            first += size
