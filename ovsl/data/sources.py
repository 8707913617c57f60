"""Where samples come from: Hub repositories and Parquet files (streamed), and the generated toy world.

A source is a list of rows that are read one by one; it knows nothing of batches, processes or vocabularies.
Constructors only store their arguments: files and repositories are opened when a row or the length is asked for.
"""

import io
import os
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ovsl.data.order import group_order, row_order
from ovsl.errors import InputError

LabelTransform = Literal["identity", "reduce_zero_label"] | int | list[int] | dict[int, int]

# Read attempts of one row group, on top of the retries inside `huggingface_hub` and `datasets`.
READ_ATTEMPTS = 3
# Mask values are looked up in a table: 16 bits hold every published label space.
LABEL_VALUES = 1 << 16
INVALID_LABEL = -1


class UndecodableImageError(InputError):
    """An image or mask whose bytes cannot be decoded."""


@dataclass(frozen=True)
class Segments:
    """Segments of one image that do not overlap: its panoptic ground truth.

    Attributes:
        ids: Integers ``(H, W)``: 0 where there is no segment, else 1..N.
        classes: Label value of segments 1..N, as stored in the file, int64 ``(N,)``.
        crowd: Whether each is a region of uncounted things, bool ``(N,)``.
    """

    ids: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    def renumber(self, numbers: np.ndarray) -> "Segments":
        """Leave segments out or merge them.

        Args:
            numbers: New number of segments 1..N, ``(N,)``: 0 leaves one out, equal numbers merge. The numbers in use
                are 1..M; a merged segment has the class of the first of its parts.
        """
        _, first = np.unique(numbers, return_index=True)
        first = first[numbers[first] > 0]
        lookup = np.concatenate([[0], numbers]).astype(np.uint16)
        return Segments(lookup[self.ids], self.classes[first], self.crowd[first])


@dataclass(frozen=True)
class Row:
    """One image of a source.

    Attributes:
        id: Stable name of the image.
        image: RGB, uint8 ``(H, W, 3)``.
        semantic: Label values as stored in the file, any integer type ``(H, W)``; None where a source has no labels.
        path: File the image came from, where there is one.
        segments: Panoptic ground truth; None where a source gives none.
    """

    id: str
    image: np.ndarray
    semantic: np.ndarray | None
    path: str | None = None
    segments: Segments | None = None


class Source(ABC):
    """Rows of images with label masks.

    Attributes:
        name: How messages call this source.
        label_transform: What the label values of the files mean, see :func:`label_table`.
        ignore_index: Label value of the files that stands for "no label".
        panoptic: Whether rows have segments.
    """

    name: str
    label_transform: LabelTransform = "identity"
    ignore_index: int = 255
    panoptic: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def row(self, index: int) -> Row:
        """Read one row.

        Args:
            index: Row number, ``0 <= index < len(self)``.

        Raises:
            InputError: The row cannot be used.
        """

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Order of the rows in one training epoch, int64 ``(len(self),)``: a pure function of its arguments."""
        return row_order(len(self), seed, epoch)


def label_table(transform: LabelTransform, source_ignore_index: int, num_classes: int, ignore_index: int) -> np.ndarray:
    """Table from the label values of a source to class indices.

    Args:
        transform: ``identity``; ``reduce_zero_label`` (0 is ignored, then every value is lowered by one, as ADE20K
            needs); an integer that is added to every value; a list with the class index of value 0, 1, ...; or a
            dictionary from value to class index that ignores what it does not list.
        source_ignore_index: Value of the files (and of lists and dictionaries) that stands for "no label".
        num_classes: Number of classes; other results are invalid.
        ignore_index: What ignored values become.

    Returns:
        int32 ``(65536,)``: class index, ``ignore_index``, or ``INVALID_LABEL``.
    """
    values = np.arange(LABEL_VALUES)
    ignored = values == source_ignore_index
    match transform:
        case "identity":
            classes = values
        case "reduce_zero_label":
            classes, ignored = values - 1, ignored | (values == 0)
        case int():
            classes = values + transform
        case list():
            classes = np.full(LABEL_VALUES, INVALID_LABEL)
            classes[: len(transform)] = transform
            ignored = ignored | (classes == source_ignore_index)
        case dict():
            classes = np.full(LABEL_VALUES, source_ignore_index)
            classes[list(transform)] = list(transform.values())
            ignored = classes == source_ignore_index
        case _:
            raise InputError(
                f"Unknown label_transform {transform!r}: use identity, reduce_zero_label, "
                "an offset, a list or a dictionary."
            )
    valid = (classes >= 0) & (classes < num_classes)
    return np.where(ignored, ignore_index, np.where(valid, classes, INVALID_LABEL)).astype(np.int32)


class ParquetRows(Source):
    """Rows of Parquet files, streamed by ``datasets`` one row group at a time.

    Row counts come from the footers, so any row can be reached without reading those before it, and a resumed run skips
    what it has seen without touching it. A reader keeps the encoded rows of the last ``interleave`` row groups.

    Args:
        image_column: Column with the encoded image.
        mask_column: Column with the encoded label mask.
        id_column: Column with a name for the row; None takes the row number.
        label_transform: What the label values mean, see :func:`label_table`.
        ignore_index: Label value of the files that stands for "no label".
        mask_encoding: ``index``: the pixel value of the mask is the label.
        interleave: Row groups that are mixed in training. Memory of a reader grows with it. Where it is a multiple of
            (global batch x workers), every row group is read by one worker only.
        panoptic_column: Column with the encoded panoptic map, an RGB picture of ids R + 256 G + 65536 B, 0 where there
            is no segment; None takes no segments.
        segments_column: Column that lists the segments of that map: ``id``, ``category_id`` (a label value like those
            of the mask), ``iscrowd``.
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
        self.panoptic = panoptic_column is not None
        self._open_groups: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    @abstractmethod
    def _builder(self) -> Any:
        """The ``datasets`` builder of the files."""

    @property
    @abstractmethod
    def _split(self) -> str:
        """Name of the split in the builder."""

    @property
    @abstractmethod
    def _remedy(self) -> str:
        """What to do when reading fails."""

    @cached_property
    def _stream(self) -> tuple[Any, np.ndarray]:
        """The stream with one shard per row group, and the first row of each row group."""
        import datasets
        import fsspec  # type: ignore[import-untyped]
        import pyarrow.parquet as pq

        # The defaults wait up to 20 times 20 s before a dead server is reported.
        datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 3
        datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 1
        datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 2
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
            columns = footers[0].schema.to_arrow_schema().names
            segments_columns = (self.panoptic_column, self.segments_column) if self.panoptic else ()
            wanted = [
                c for c in (self.image_column, self.mask_column, self.id_column, *segments_columns) if c is not None
            ]
            for column in wanted:
                if column not in columns:
                    raise InputError(f"{self.name} has no column '{column}': set it to one of {', '.join(columns)}.")
            builder.config.columns = wanted
            stream = builder.as_streaming_dataset(split=self._split).reshard().with_format("arrow")
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"Cannot open {self.name} ({_one_line(error)}): {self._remedy}.") from error
        sizes = [footer.row_group(i).num_rows for footer in footers for i in range(footer.num_row_groups)]
        if not sum(sizes):
            raise InputError(f"{self.name} has no rows in split '{self._split}': {self._remedy}.")
        if stream.num_shards != len(sizes):
            raise InputError(f"{self.name} changed while it was opened: pin a revision or start again.")
        return stream, np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return int(self._stream[1][-1])

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the rows that are kept, for workers that are spawned."""
        return self.__dict__ | {"_open_groups": OrderedDict()}

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Row groups permuted and interleaved, rows permuted inside each, see :func:`ovsl.data.order.group_order`."""
        return group_order(np.diff(self._stream[1]).tolist(), seed, epoch, self.interleave)

    def row(self, index: int) -> Row:
        """Read one row; see :class:`Source`."""
        first_rows = self._stream[1]
        group = int(np.searchsorted(first_rows, index, side="right")) - 1
        values = self._group(group)[index - int(first_rows[group])]
        id = str(values[self.id_column]) if self.id_column is not None else f"{index:08d}"
        where = f"row {index} ('{id}') of {self.name}" if self.id_column is not None else f"row {index} of {self.name}"
        image = np.asarray(_decode(values[self.image_column], f"image of {where}", mode="RGB"))
        if values[self.mask_column] is None:
            raise InputError(
                f"There is no mask in {where}: remove the row or use another column than '{self.mask_column}'."
            )
        semantic = np.asarray(_decode(values[self.mask_column], f"mask of {where}"))
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
            segments = self._segments(encoded, listed, semantic.shape, where)
        return Row(id, image, semantic, segments=segments)

    def _segments(
        self, encoded: Any, listed: list[dict[str, Any]] | None, size: tuple[int, ...], where: str
    ) -> Segments:
        if encoded is None or listed is None:
            raise InputError(f"There is no panoptic map in {where}: remove the row or leave panoptic_column out.")
        colours = np.asarray(_decode(encoded, f"panoptic map of {where}", mode="RGB")).astype(np.int32)
        if colours.shape[:2] != size:
            raise InputError(f"Image and panoptic map differ in size in {where}: repair or remove the row.")
        stored = colours @ np.array([1, 1 << 8, 1 << 16], np.int32)
        try:
            known = np.array([0, *(entry["id"] for entry in listed)], np.int64)
            classes = np.array([entry["category_id"] for entry in listed], np.int64)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"Column '{self.segments_column}' of {where} does not list segments with id and category_id: "
                "name another column in segments_column."
            ) from error
        order = known.argsort()
        place = np.searchsorted(known, stored, sorter=order).clip(max=len(known) - 1)
        ids = order.astype(np.uint16)[place]
        if (wrong := known[ids] != stored).any():
            raise InputError(
                f"Segment {int(stored[wrong][0])} of the panoptic map of {where} is not in '{self.segments_column}': "
                "repair or remove the row."
            )
        return Segments(ids, classes, np.array([bool(entry.get("iscrowd")) for entry in listed], bool))

    def _group(self, group: int) -> list[dict[str, Any]]:
        """Encoded rows of a row group, from the most recently used ones or from the stream."""
        if group in self._open_groups:
            self._open_groups.move_to_end(group)
            return self._open_groups[group]
        while len(self._open_groups) >= self.interleave:
            self._open_groups.popitem(last=False)
        stream, first_rows = self._stream
        expected = int(first_rows[group + 1] - first_rows[group])
        for attempt in range(READ_ATTEMPTS):
            try:
                shard = stream.shard(num_shards=stream.num_shards, index=group)
                rows = [row for table in shard.iter(batch_size=expected) for row in table.to_pylist()]
                if len(rows) != expected:
                    raise OSError(f"{len(rows)} of {expected} rows")
                break
            except Exception as error:
                if attempt + 1 == READ_ATTEMPTS:
                    raise InputError(f"Cannot read {self.name} ({_one_line(error)}): {self._remedy}.") from error
                time.sleep(2**attempt)
        self._open_groups[group] = rows
        return rows


class HubSource(ParquetRows):
    """A dataset repository of the Hugging Face Hub, streamed: nothing is stored on disk.

    Args:
        repo: Repository, ``owner/name``.
        split: Split of the repository, under the name it has there.
        name: Configuration of the repository, where it has several.
        revision: Branch, tag or commit; a commit makes the run reproducible.
        image_column: Column with the encoded image.
        mask_column: Column with the encoded label mask.
        id_column: Column with a name for the row; None takes the row number.
        label_transform: What the label values mean, see :func:`label_table`.
        ignore_index: Label value of the files that stands for "no label".
        mask_encoding: ``index``: the pixel value of the mask is the label.
        interleave: Row groups that are mixed in training, see :class:`ParquetRows`.
        panoptic_column: Column with the encoded panoptic map, see :class:`ParquetRows`; None takes no segments.
        segments_column: Column that lists the segments of that map.
    """

    def __init__(
        self,
        repo: str,
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        image_column: str = "image",
        mask_column: str = "mask",
        id_column: str | None = None,
        label_transform: LabelTransform = "identity",
        ignore_index: int = 255,
        mask_encoding: Literal["index"] = "index",
        interleave: int = 16,
        panoptic_column: str | None = None,
        segments_column: str = "segments_info",
    ) -> None:
        super().__init__(
            image_column,
            mask_column,
            id_column,
            label_transform,
            ignore_index,
            mask_encoding,
            interleave,
            panoptic_column,
            segments_column,
        )
        self.repo = repo
        self.split = split
        self.configuration = name
        self.revision = revision
        self.name = f"Hub dataset '{repo}' ({split})"

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
            ``<split>-*.parquet``, ``<split>.parquet`` or ``<split>/*.parquet``, at the top or under ``data/``. What is
            not in the current folder is looked for in the folder that the environment variable ``OVSL_DATA`` names
            (default ``data``).
        split: Split whose files are taken from a folder.
        image_column: Column with the encoded image.
        mask_column: Column with the encoded label mask.
        id_column: Column with a name for the row; None takes the row number.
        label_transform: What the label values mean, see :func:`label_table`.
        ignore_index: Label value of the files that stands for "no label".
        mask_encoding: ``index``: the pixel value of the mask is the label.
        interleave: Row groups that are mixed in training, see :class:`ParquetRows`.
        panoptic_column: Column with the encoded panoptic map, see :class:`ParquetRows`; None takes no segments.
        segments_column: Column that lists the segments of that map.
    """

    def __init__(
        self,
        files: str | list[str],
        split: str = "train",
        image_column: str = "image",
        mask_column: str = "mask",
        id_column: str | None = None,
        label_transform: LabelTransform = "identity",
        ignore_index: int = 255,
        mask_encoding: Literal["index"] = "index",
        interleave: int = 16,
        panoptic_column: str | None = None,
        segments_column: str = "segments_info",
    ) -> None:
        super().__init__(
            image_column,
            mask_column,
            id_column,
            label_transform,
            ignore_index,
            mask_encoding,
            interleave,
            panoptic_column,
            segments_column,
        )
        self.files = [files] if isinstance(files, str) else files
        self.split = split
        self.name = f"Parquet files '{', '.join(self.files)}' ({split})"

    def _builder(self) -> Any:
        import datasets

        found = [file for pattern in self.files for file in self._matches(_locate(pattern))]
        return datasets.load_dataset_builder("parquet", data_files={self._split: [str(file) for file in found]})

    def _matches(self, pattern: Path) -> list[Path]:
        if pattern.is_dir():
            patterns = [f"{self.split}-*.parquet", f"{self.split}.parquet", f"{self.split}/*.parquet"]
            found = [file for top in (pattern, pattern / "data") for p in patterns for file in sorted(top.glob(p))]
            shards = sorted(pattern.glob("*.parquet")) + sorted((pattern / "data").glob("*.parquet"))
            if not found and shards:
                splits = sorted({file.name.split("-0")[0].removesuffix(".parquet") for file in shards})
                raise InputError(f"Folder '{pattern}' has no split '{self.split}': use one of {', '.join(splits)}.")
        else:
            found = sorted(Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor))))
        if not found:
            raise InputError(
                f"No Parquet file matches '{pattern}' (split '{self.split}'): check the path of the data, or set "
                "OVSL_DATA to the folder that holds it."
            )
        return found

    @property
    def _split(self) -> str:
        return "rows"

    @property
    def _remedy(self) -> str:
        return "check that the files are complete Parquet files"


def _locate(pattern: str) -> Path:
    """A path as given where it exists, otherwise below the folder of all data, if it exists there."""
    given = Path(pattern).expanduser()
    stored = Path(os.environ.get("OVSL_DATA", "data")) / given
    return stored if not given.exists() and stored.exists() else given


class ToySource(Source):
    """Scenes of the toy world, drawn when they are asked for.

    Args:
        seed: Seed of the scenes; two seeds share no scene.
        length: Number of scenes.
        size: Height and width of the scenes in pixels.
        panoptic: Whether scenes come with their segments: every object and every material.
    """

    def __init__(self, seed: int = 0, length: int = 2000, size: int = 128, panoptic: bool = True) -> None:
        self.seed = seed
        self.length = length
        self.size = size
        self.panoptic = panoptic
        self.name = f"toy scenes (seed {seed})"

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> Row:
        """Draw one scene; see :class:`Source`."""
        from ovsl.data.toy import render_scene

        scene = render_scene(self.seed, index, self.size)
        segments = None
        if self.panoptic:
            classes = np.array([*(drawn.class_index for drawn in scene.objects), *scene.stuff])
            # Objects are numbered in the scene already; the materials follow.
            materials = np.zeros(classes.max() + 1, np.uint16)
            materials[list(scene.stuff)] = len(scene.objects) + 1 + np.arange(len(scene.stuff))
            ids = np.where(scene.instances > 0, scene.instances, materials[scene.semantic])
            segments = Segments(ids, classes, np.zeros(len(classes), bool))
        return Row(f"toy-{self.seed}-{index:06d}", scene.image, scene.semantic, segments=segments)


class ImageFiles(Source):
    """Image files without labels.

    Args:
        files: The files.
        ids: Name of each.
    """

    def __init__(self, files: Sequence[Path], ids: Sequence[str]) -> None:
        self.files = list(files)
        self.ids = list(ids)
        self.name = "image files"

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> Row:
        """Read one file; see :class:`Source`."""
        file = self.files[index]
        image = np.asarray(_decode(file.read_bytes(), f"image '{file}'", mode="RGB"))
        return Row(self.ids[index], image, None, str(file))


def _decode(value: Any, what: str, mode: str | None = None) -> Image.Image:
    """Decode an image cell: bytes, or the ``{"bytes", "path"}`` of the Image feature.

    EXIF rotation is not applied, since masks match the stored pixels.
    """
    encoded = value.get("bytes") if isinstance(value, dict) else value
    try:
        if not encoded:
            raise ValueError("no bytes")
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return image.convert(mode) if mode is not None else image
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on broken files
        raise UndecodableImageError(
            f"Cannot decode the {what} ({_one_line(error)}): repair or remove it, or set on_error to skip."
        ) from error


def _one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
