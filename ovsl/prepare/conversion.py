"""From a release to a folder of Parquet files, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ovsl.errors import InputError
from ovsl.prepare.card import Description
from ovsl.prepare.layout import Layout, Release
from ovsl.prepare.writer import Task, is_written, plan_of, shards_of, write_shards
from ovsl.runs.files import remove_orphans, write_text
from ovsl.runs.owner import RunLock

Progress = Callable[[int], object]
"""Called with the number of images that were finished."""


@dataclass(frozen=True)
class Conversion:
    """A release that was found, and what is to be made of it.

    Attributes:
        layout: Its layout.
        release: Its files.
        target: The folder to make.
        tasks: A task for each file to write.
        description: What is written down of it.
    """

    layout: Layout
    release: Release
    target: Path
    tasks: tuple[Task, ...]
    description: Description

    @property
    def unfinished(self) -> Path:
        """Folder that takes the files until all are there."""
        return self.target.with_name(f"{self.target.name}.unfinished")

    @property
    def complete(self) -> bool:
        """Whether the target was made of the same files in the same way.

        Raises:
            InputError: It is something else.
        """
        if not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir())):
            return False
        try:
            made = json.loads((self.target / "ovsl.json").read_text(encoding="utf-8"))["plan"]
        except (OSError, ValueError, KeyError, TypeError):
            made = None
        if made == self.description.plan:
            return True
        what = "was made of other files or by another version" if made else "is not empty"
        raise InputError(f"'{self.target}' {what}: remove it, or name another folder by --to.")

    def waiting(self) -> list[Task]:
        """Tasks whose files are not there yet."""
        return [task for task in self.tasks if not is_written(self.unfinished / task.shard.file, task.plan)]

    def run(self, workers: int, progress: Progress = lambda images: None) -> None:
        """Write the files that are missing, then the card, and give the folder its name.

        Args:
            workers: Processes.
            progress: Called after each file.

        Raises:
            InputError: Something of the release cannot be used; files that are whole stay for the next start.
            OSError: The disk is full or cannot be written to; likewise.
        """
        folder = self.unfinished
        with _owned(folder, self.target):
            remove_orphans(folder)
            for images in write_shards(self.waiting(), workers):
                progress(images)
            wanted = {task.shard.file for task in self.tasks}
            for file in folder.glob("*.parquet"):
                if file.name not in wanted:
                    file.unlink()
            _check_counts(folder, self.description)
            write_text(folder / "README.md", self.description.as_card())
            write_text(folder / "ovsl.json", self.description.as_json())
        if self.target.is_dir():
            self.target.rmdir()  # empty, see `complete`
        folder.rename(self.target)


def plan_conversion(
    layout: Layout,
    source: Path,
    target: Path,
    describe: Callable[[Release, str], Description],
    splits: list[str] | None = None,
    files: int | None = None,
) -> Conversion:
    """Look for a release and deal its images to files; nothing is written.

    Args:
        layout: Its layout.
        source: Where it lies.
        target: Folder to make.
        describe: Makes the description of what was found and of its plan.
        splits: Splits that have to be there; None takes all that are.
        files: Files of each split; None decides by their numbers of images.

    Raises:
        InputError: The release is not there, or files of it are missing.
    """
    release = layout.find(source, splits)
    shards = shards_of(release, files)
    plan = plan_of(layout, release, shards)
    folder = target.with_name(f"{target.name}.unfinished")
    tasks = tuple(
        Task(layout, shard, folder, plan, release.panoptic, release.instances)
        for of_split in shards.values()
        for shard in of_split
    )
    return Conversion(layout, release, target, tasks, describe(release, plan))


def _check_counts(folder: Path, description: Description) -> None:
    """Compare the rows of the files with the images that were found.

    Raises:
        InputError: They differ.
    """
    import pyarrow.parquet as pq

    for split, count in description.counts.items():
        rows = sum(pq.read_metadata(file).num_rows for file in folder.glob(f"{split}-*-of-*.parquet"))
        if rows != count:
            raise InputError(f"'{folder}' has {rows} rows of {split} for {count} images: remove it and start again.")


@contextmanager
def _owned(folder: Path, target: Path) -> Iterator[None]:
    """Own a folder that is being written."""
    lock = RunLock(folder)
    try:
        lock.__enter__()
    except InputError as error:
        raise InputError(f"'{target}' is being prepared by another process: wait for it, or stop it.") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
