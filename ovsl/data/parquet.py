"""Rows of Parquet files, streamed: repositories of the Hugging Face Hub, and local files."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ovsl.data.fingerprint import footers_hash, samples_hash
from ovsl.data.local_files import locate, parquet_files
from ovsl.data.order import group_order
from ovsl.data.regions import region_map
from ovsl.data.sources import LabelTransform, Row, Source, decode_pixels, one_line
from ovsl.data.truth import instances_of, integer_columns, segments_of
from ovsl.errors import InputError, asked_to_wait

# Read attempts of one row group, on top of the retries inside `huggingface_hub` and `datasets`.
READ_ATTEMPTS = 3

_COMMIT = re.compile(r"@([0-9a-f]{40})/")  # in the resolved files of a repository


class ParquetRows(Source):
    """Rows of Parquet files, streamed by `datasets` one row group at a time.

    Row counts come from the footers, so any row can be reached without reading those before it, and a resumed run skips
    what it has seen without touching it. A reader keeps the encoded rows of the last `interleave` row groups.

    Args:
        image_column: Column with the encoded image.
        mask_column: Column with the encoded label mask.
        id_column: Column with a name for the row; None takes the row number.
        label_transform: What the label values mean, see `label_table`.
        ignore_index: Label value of the files that stands for "no label".
        mask_encoding: `index`: the pixel value of the mask is the label.
        interleave: Row groups that are mixed in training. Memory of a reader grows with it. Where it is a multiple of
            (global batch x workers), every row group is read by one worker only.
        panoptic_column: Column with the encoded panoptic map, an RGB picture of ids R + 256 G + 65536 B, 0 where there
            is no segment; None takes no segments.
        segments_column: Column that lists the segments of that map: `id`, `category_id` (a label value like those
            of the mask), `iscrowd`.
        regions_column: Column with an encoded map of class-agnostic regions, see `RegionFolder`; None takes none.
        instances_column: Column that lists the true masks of mask AP, where they are not those of the panoptic map
            (COCO's `instances` files), see `ovsl.data.truth.instances_of`.
        width_column: Width of the image, read when batches are grouped by orientation.
        height_column: Its height, likewise.
    """

    def __init__(
        self,
        image_column: str = "image",
        mask_column: str = "mask",
        id_column: str | None = None,
        label_transform: LabelTransform = "identity",
        ignore_index: int = 255,
        mask_encoding: Literal["index"] = "index",
        interleave: int = 16,
        panoptic_column: str | None = None,
        segments_column: str = "segments_info",
        regions_column: str | None = None,
        instances_column: str | None = None,
        width_column: str = "width",
        height_column: str = "height",
    ) -> None:
        self.image_column = image_column
        self.mask_column = mask_column
        self.id_column = id_column
        self.label_transform = label_transform
        self.ignore_index = ignore_index
        self.mask_encoding = mask_encoding
        self.interleave = interleave
        self.panoptic_column = panoptic_column
        self.segments_column = segments_column
        self.regions_column = regions_column
        self.instances_column = instances_column
        self.width_column = width_column
        self.height_column = height_column
        self.panoptic = panoptic_column is not None
        self.has_instances = instances_column is not None
        self._open_groups: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    @abstractmethod
    def _builder(self) -> Any:
        """Make the `datasets` builder of the files."""

    @property
    @abstractmethod
    def _split(self) -> str:
        """Name of the split in the builder."""

    @property
    @abstractmethod
    def _remedy(self) -> str:
        """What to do when reading fails."""

    @cached_property
    def _stream(self) -> tuple[Any, np.ndarray, dict[str, Any], dict[str, str]]:
        """The stream with one shard per row group, the first row of each, what the data is, and its columns."""
        import datasets
        import fsspec  # type: ignore[import-untyped]
        import pyarrow.parquet as pq

        # The defaults wait up to 20 times 20 s before a dead server is reported; `huggingface_hub` waits by itself too.
        datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 3
        datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 1
        datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 2
        datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 1
        try:
            builder = self._builder()
            splits = builder.config.data_files or {}
            if builder.name != "parquet":
                raise InputError(
                    f"{self.name} holds '{builder.name}' data, but only Parquet can be streamed in a reproducible "
                    "order: convert it to Parquet with an image and a mask column."
                )
            if self._split not in splits:
                raise InputError(f"{self.name} has no split '{self._split}': use one of {', '.join(map(str, splits))}.")

            def footer(url: str) -> Any:
                with fsspec.open(url, "rb") as file:
                    return pq.read_metadata(file)

            with ThreadPoolExecutor(8) as pool:
                footers = list(pool.map(footer, splits[self._split]))
            columns = {field.name: str(field.type) for field in footers[0].schema.to_arrow_schema()}
            segments_columns = (self.panoptic_column, self.segments_column) if self.panoptic else ()
            always = (self.image_column, self.mask_column, self.id_column, self.regions_column, self.instances_column)
            wanted = [column for column in (*always, *segments_columns) if column is not None]
            for column in wanted:
                if column not in columns:
                    raise InputError(f"{self.name} has no column '{column}': set it to one of {', '.join(columns)}.")
            builder.config.columns = wanted
            stream = builder.as_streaming_dataset(split=self._split).reshard().with_format("arrow")
        except InputError:
            raise
        except Exception as error:
            raise self._unreadable("open", error) from error
        sizes = [footer.row_group(i).num_rows for footer in footers for i in range(footer.num_row_groups)]
        if not sum(sizes):
            raise InputError(f"{self.name} has no rows in split '{self._split}': {self._remedy}.")
        if stream.num_shards != len(sizes):
            raise InputError(f"{self.name} changed while it was opened: pin a revision or start again.")
        described = {"rows": sum(sizes), "footers": footers_hash(footers)}
        if local := [Path(url) for url in map(str, splits[self._split]) if Path(url).is_file()]:
            described["samples"] = samples_hash(local)
        if (commit := _COMMIT.search(str(splits[self._split][0]))) is not None:
            described["commit"] = commit[1]
        return stream, np.concatenate([[0], np.cumsum(sizes)]), described, columns

    def columns(self) -> dict[str, str]:
        """See `Source.columns`; from the footer of the first file."""
        return self._stream[3]

    def fingerprint(self) -> dict[str, Any]:
        """Rows, a hash of what the footers say of rows and sizes, and the commit of a repository."""
        return self._stream[2]

    def __len__(self) -> int:
        return int(self._stream[1][-1])

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the rows that are kept, for workers that are spawned."""
        return self.__dict__ | {"_open_groups": OrderedDict()}

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Row groups permuted and interleaved, rows permuted inside each, see `group_order`."""
        return group_order(np.diff(self._stream[1]).tolist(), seed, epoch, self.interleave)

    def portrait(self) -> np.ndarray:
        """See `Source.portrait`; only the columns of sizes are read."""
        try:
            files = self._builder().config.data_files[self._split]
            widths, heights = integer_columns(files, [self.width_column, self.height_column])
        except KeyError as missing:
            what = f"{self.name} has no column {missing} with a size of the images"
            raise InputError(f"{what}: add it, or set group_by_orientation to false.") from missing
        return widths <= heights

    def row(self, index: int) -> Row:
        """Read one row; see `Source`."""
        first_rows = self._stream[1]
        group = int(np.searchsorted(first_rows, index, side="right")) - 1
        values = self._group(group)[index - int(first_rows[group])]
        id = str(values[self.id_column]) if self.id_column is not None else f"{index:08d}"
        where = f"row {index} ('{id}') of {self.name}" if self.id_column is not None else f"row {index} of {self.name}"
        image = decode_pixels(values[self.image_column], f"image of {where}", mode="RGB")
        if values[self.mask_column] is None:
            raise InputError(
                f"There is no mask in {where}: remove the row or use another column than '{self.mask_column}'."
            )
        semantic = decode_pixels(values[self.mask_column], f"mask of {where}")
        if semantic.ndim != 2:
            raise InputError(f"The mask of {where} is a colour picture: convert it to one label value per pixel.")
        if semantic.shape != image.shape[:2]:
            raise InputError(
                f"Image and mask differ in size in {where}: {image.shape[1]}x{image.shape[0]} and "
                f"{semantic.shape[1]}x{semantic.shape[0]}; repair or remove the row."
            )
        segments = None
        if self.panoptic_column is not None:
            encoded, listed = values[self.panoptic_column], values[self.segments_column]
            segments = segments_of(encoded, listed, semantic.shape, self.segments_column, where)
        regions = None
        if self.regions_column is not None:
            if values[self.regions_column] is None:
                raise InputError(f"There is no region map in {where}: make one for every image.")
            regions = region_map(values[self.regions_column], image.shape[:2], f"region map of {where}")
        instances = None
        if self.instances_column is not None:
            instances = instances_of(values[self.instances_column], semantic.shape, self.instances_column, where)
        return Row(id, image, semantic, segments=segments, regions=regions, instances=instances)

    def _unreadable(self, what: str, error: Exception) -> InputError:
        return InputError(f"Cannot {what} {self.name} ({one_line(error)}): {asked_to_wait(error) or self._remedy}.")

    def _group(self, group: int) -> list[dict[str, Any]]:
        """Take the encoded rows of a row group from the most recently used ones, or from the stream."""
        if group in self._open_groups:
            self._open_groups.move_to_end(group)
            return self._open_groups[group]
        while len(self._open_groups) >= self.interleave:
            self._open_groups.popitem(last=False)
        stream, first_rows, *_ = self._stream
        expected = int(first_rows[group + 1] - first_rows[group])
        for attempt in range(READ_ATTEMPTS):
            try:
                shard = stream.shard(num_shards=stream.num_shards, index=group)
                rows = [row for table in shard.iter(batch_size=expected) for row in table.to_pylist()]
                if len(rows) != expected:
                    raise OSError(f"{len(rows)} of {expected} rows")
                break
            except Exception as error:
                if asked_to_wait(error) or attempt + 1 == READ_ATTEMPTS:
                    raise self._unreadable("read", error) from error
                time.sleep(2**attempt)
        self._open_groups[group] = rows
        return rows


class HubSource(ParquetRows):
    """A dataset repository of the Hugging Face Hub, streamed: nothing is stored on disk.

    Args:
        repo: Repository, `owner/name`.
        split: Split of the repository, under the name it has there.
        name: Configuration of the repository, where it has several.
        revision: Branch, tag or commit; a commit makes the run reproducible.
        **columns: Columns and what they mean, see `ParquetRows`.
    """

    def __init__(
        self,
        repo: str,
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        **columns: Any,
    ) -> None:
        super().__init__(**columns)
        self.repo = repo
        self.split = split
        self.configuration = name
        self.revision = revision
        self.name = f"Hub dataset '{repo}' ({split})"

    def pin(self, fingerprint: Mapping[str, Any]) -> None:
        """Read the commit of the run's first start, wherever the branch has moved to since."""
        if self.revision is None and "commit" in fingerprint:
            self.revision = fingerprint["commit"]
            # A look at the branch is forgotten.
            self.__dict__.pop("_stream", None)
            self._open_groups.clear()

    def _builder(self) -> Any:
        import datasets

        # `streaming=True` of `load_dataset`, in two steps: the files are known before they are opened.
        return datasets.load_dataset_builder(self.repo, self.configuration, revision=self.revision)

    @property
    def _split(self) -> str:
        return self.split

    @property
    def _remedy(self) -> str:
        return "check the name, the network, HF_ENDPOINT and HF_TOKEN, or use ParquetSource with local files"


class ParquetSource(ParquetRows):
    """Local Parquet files.

    Args:
        files: Folder, file, glob pattern, or a list of these. In a folder, the files of the split are
            `<split>-*.parquet`, `<split>.parquet` or `<split>/*.parquet`, at the top or under `data/`. What is
            not in the current folder is looked for in the folder that the environment variable `OVSL_DATA` names
            (default `data`).
        split: Split whose files are taken from a folder.
        **columns: Columns and what they mean, see `ParquetRows`.
    """

    def __init__(self, files: str | list[str], split: str = "train", **columns: Any) -> None:
        super().__init__(**columns)
        self.files = [files] if isinstance(files, str) else files
        self.split = split
        self.name = f"Parquet files '{', '.join(self.files)}' ({split})"

    def _builder(self) -> Any:
        import datasets

        found = [file for pattern in self.files for file in parquet_files(locate(pattern), self.split)]
        return datasets.load_dataset_builder("parquet", data_files={self._split: [str(file) for file in found]})

    @property
    def _split(self) -> str:
        return "rows"

    @property
    def _remedy(self) -> str:
        return "check that the files are complete Parquet files"
