"""Rows as Parquet files: several processes, nothing half-written, and a start again goes on.

Files are written into `<target>.unfinished`, each whole or not at all, with the plan that it was made by in its footer;
the folder becomes `<target>` when every one of them is there. So a conversion that was stopped cannot be mistaken for
data, and the same command goes on with the files that are missing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ovsl.errors import InputError
from ovsl.prepare.layout import Item, Layout, Release, image_size
from ovsl.prepare.segments import encode_png
from ovsl.runs.files import whole_file

ROWS_OF_A_GROUP = 32
"""A row group is what one read fetches."""

MOST_FILES = 64
"""Files of a split: a multiple of the usual numbers of processes and workers."""

FORMAT = 1
"""Raised when the same release would be written otherwise."""

PLAN = b"ovsl.plan"
"""Key of the plan in a file's footer."""


@dataclass(frozen=True)
class Shard:
    """One file to write.

    Attributes:
        file: Its name.
        items: Its rows.
    """

    file: str
    items: Sequence[Item]


def shards_of(release: Release, files: int | None = None) -> dict[str, list[Shard]]:
    """Deal the images of each split to files whose sizes differ by at most one row.

    Args:
        release: What was found.
        files: Files of each split; None takes one for each row group, at most `MOST_FILES`.
    """
    shards = {}
    for split, items in release.splits.items():
        count = min(len(items), files or min(MOST_FILES, -(-len(items) // ROWS_OF_A_GROUP)))
        bounds = np.linspace(0, len(items), count + 1).round().astype(int) if count else [0]
        shards[split] = [
            Shard(f"{split}-{number:05d}-of-{count:05d}.parquet", items[first:last])
            for number, (first, last) in enumerate(pairwise(bounds))
        ]
    return shards


def plan_of(layout: Layout, release: Release, shards: Mapping[str, Sequence[Shard]]) -> str:
    """Hash what is made: the layout, names and sizes of the files of the release, and how they are dealt."""
    digest = hashlib.sha256(repr((FORMAT, layout, layout.words(), release.panoptic, release.instances)).encode())
    for shard in (shard for of_split in shards.values() for shard in of_split):
        digest.update(shard.file.encode())
        for item in shard.items:
            sizes = [file.stat().st_size for file in (item.image, *item.labels.values())]
            digest.update(repr((item.id, sizes, item.annotation)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Task:
    """What a process needs to write a file."""

    layout: Layout
    shard: Shard
    folder: Path
    plan: str
    panoptic: bool
    instances: bool

    def run(self) -> int:
        """Write the file, unless it is there already.

        Returns:
            Its number of rows.

        Raises:
            InputError: Something of the release cannot be used.
            OSError: The disk is full or cannot be written to.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = self.folder / self.shard.file
        if is_written(target, self.plan):
            return len(self.shard.items)
        schema = features(self.panoptic, self.instances).arrow_schema
        schema = schema.with_metadata({**(schema.metadata or {}), PLAN: self.plan.encode()})
        with whole_file(target) as partial, pq.ParquetWriter(partial, schema) as writer:
            for first in range(0, len(self.shard.items), ROWS_OF_A_GROUP):
                rows = [self.row(item) for item in self.shard.items[first : first + ROWS_OF_A_GROUP]]
                writer.write_table(pa.Table.from_pylist(rows, schema))
        return len(self.shard.items)

    def row(self, item: Item) -> dict[str, Any]:
        """Make a row of an image.

        Raises:
            InputError: Its files cannot be read, or differ in size.
        """
        labelled = self.layout.labelled(item)
        encoded = item.image.read_bytes() if labelled.image is None else labelled.image
        width, height = image_size(encoded, item.image)
        if labelled.semantic.shape != (height, width):
            other = "x".join(map(str, labelled.semantic.shape[::-1]))
            raise InputError(
                f"Image and labels differ in size: '{item.image}' is {width}x{height}, "
                f"'{next(iter(item.labels.values()), item.image)}' {other}; unpack the release again."
            )
        row: dict[str, Any] = {
            "image_id": item.id,
            "image": {"bytes": encoded, "path": None},
            "mask": {"bytes": encode_png(labelled.semantic), "path": None},
            "width": width,
            "height": height,
        }
        if self.panoptic:
            row |= {"panoptic": {"bytes": labelled.panoptic, "path": None}, "segments_info": labelled.segments}
        if self.instances:
            row["instances"] = labelled.instances
        return row


def features(panoptic: bool, instances: bool) -> Any:
    """Columns of the files, as `datasets.Features`."""
    from datasets import Features, Image, Value

    columns: dict[str, Any] = {
        "image_id": Value("string"),
        "image": Image(),
        "mask": Image(),
        "width": Value("int32"),
        "height": Value("int32"),
    }
    if panoptic:
        columns["panoptic"] = Image()
        columns["segments_info"] = [
            {
                "id": Value("int32"),
                "category_id": Value("int32"),
                "isthing": Value("bool"),
                "iscrowd": Value("bool"),
                "bbox": [Value("int32")],
                "area": Value("int32"),
            }
        ]
    if instances:
        columns["instances"] = [
            {
                "category_id": Value("int32"),
                "iscrowd": Value("bool"),
                "bbox": [Value("float32")],
                "area": Value("float32"),
                "segmentation": {"size": [Value("int32")], "counts": Value("string")},
            }
        ]
    return Features(columns)


def write_shards(tasks: Sequence[Task], workers: int) -> Iterator[int]:
    """Run tasks in processes of their own; in this one where there is to be one.

    Yields:
        Rows of each file, as they are done.

    Raises:
        InputError: Of the first task that failed; what was written before stays.
    """
    if workers <= 1:
        for task in tasks:
            yield task.run()
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        futures: list[Future[int]] = [pool.submit(task.run) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "A process was killed, perhaps for want of memory: lower --workers; the same command goes on."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def is_written(file: Path, plan: str) -> bool:
    """Whether a file is there and was made by this plan."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (OSError, ValueError):  # not there, or not Parquet
        return False
    return bool(metadata.get(PLAN) == plan.encode())


def _begin_worker() -> None:
    """Leave an interrupt to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
