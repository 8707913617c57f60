"""From rows to batches: label values checked and mapped, transforms applied, images as uint8 tensors."""

import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovsl.data.order import sample_seed
from ovsl.data.sources import INVALID_LABEL, LABEL_VALUES, Row, Source, UndecodableImageError, label_table
from ovsl.data.transforms import EvaluationTransform, TrainTransform
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Undecodable rows in a row of the training order before `on_error: skip` gives up.
MAX_CONSECUTIVE_SKIPS = 100


class LabelledRows:
    """Rows of a source with masks in class indices of a vocabulary.

    Args:
        source: Where rows come from.
        vocabulary: Classes of the labels.
        on_error: ``error`` raises on an image that cannot be decoded, ``skip`` counts and logs it.
        ignored_classes: Class indices whose pixels become ``ignore_index``.

    Attributes:
        skipped: Number of rows skipped so far, over all workers of this process.
    """

    def __init__(
        self, source: Source, vocabulary: Vocabulary, on_error: str = "error", ignored_classes: list[int] | None = None
    ) -> None:
        self.source = source
        self.vocabulary = vocabulary
        self.on_error = on_error
        self._skipped = multiprocessing.Value("q", 0)
        table = label_table(source.label_transform, source.ignore_index, len(vocabulary), vocabulary.ignore_index)
        self._table = np.where(np.isin(table, ignored_classes or []), vocabulary.ignore_index, table)
        # OpenCV resizes masks of 8 and 16 bits.
        self._dtype = np.uint8 if max(len(vocabulary) - 1, vocabulary.ignore_index) < 256 else np.uint16

    @property
    def skipped(self) -> int:
        """Number of rows skipped so far, over all workers of this process."""
        return self._skipped.value

    def row(self, index: int) -> Row | None:
        """Read a row and map its labels.

        Args:
            index: Row number.

        Returns:
            The row with a mask of class indices and ``ignore_index``, uint8 or uint16; None where it was skipped.

        Raises:
            InputError: The row cannot be used, or a label lies outside the vocabulary.
        """
        try:
            row = self.source.row(index)
        except UndecodableImageError as error:
            if self.on_error != "skip":
                raise
            with self._skipped.get_lock():
                self._skipped.value += 1
            logger.warning("Skipped (%d so far): %s", self.skipped, error)
            return None
        if row.semantic is None:
            return row
        values = row.semantic
        if values.dtype not in (np.uint8, np.uint16):
            values = values.astype(np.int64)
            known = (values >= 0) & (values < LABEL_VALUES)
            classes = np.where(known, self._table[np.where(known, values, 0)], INVALID_LABEL)
        else:
            classes = self._table[values]
        if classes.min(initial=0) < 0:
            raise InputError(
                f"Label value {int(values[classes < 0].max())} in row {index} ('{row.id}') of {self.source.name} is "
                f"outside the {len(self.vocabulary)} classes of vocabulary '{self.vocabulary.name}': set "
                "label_transform, ignore_index or the vocabulary of this data."
            )
        return Row(row.id, row.image, classes.astype(self._dtype), row.path)


class TrainingBatches(Dataset):
    """Training batches by position, see :mod:`ovsl.data.order`.

    Args:
        rows: Rows with class indices.
        transform: Augmentation.
        batch_size: Samples per batch.
        seed: Seed of order and augmentation.
    """

    def __init__(self, rows: LabelledRows, transform: TrainTransform, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.pipeline = transform.pipeline(rows.vocabulary.ignore_index)
        self.batch_size = batch_size
        self.seed = seed
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> "dict[str, Any] | InputError":
        """Make the batch whose first sample is at ``position``.

        Returns:
            ``image`` uint8 ``(B, 3, H, W)``, ``semantic`` int64 ``(B, H, W)`` and ``id``. An error is returned, not
            raised: the loader raises it in the main process.
        """
        try:
            samples = [self.sample(position + offset) for offset in range(self.batch_size)]
        except InputError as error:
            return error
        return {
            "image": torch.from_numpy(np.stack([image for image, _, _ in samples])).permute(0, 3, 1, 2).contiguous(),
            # Widened once for the whole batch: int64 masks are dear to copy.
            "semantic": torch.from_numpy(np.stack([semantic for _, semantic, _ in samples]).astype(np.int64)),
            "id": [id for _, _, id in samples],
        }

    def sample(self, position: int) -> tuple[np.ndarray, np.ndarray, str]:
        """The sample at a position: image uint8 ``(H, W, 3)``, mask uint8 or uint16 ``(H, W)``, id."""
        # A skipped row is replaced by the next one in the order, whichever worker meets it.
        for candidate in range(position, position + MAX_CONSECUTIVE_SKIPS):
            epoch, place = divmod(candidate, len(self.rows.source))
            index = self._index(epoch, place)
            row = self.rows.row(index)
            if row is not None:
                break
        else:
            raise InputError(
                f"{MAX_CONSECUTIVE_SKIPS} rows in a row of {self.rows.source.name} cannot be decoded: check the data."
            )
        if row.semantic is None:
            raise InputError(
                f"There is no mask in row {index} ('{row.id}') of {self.rows.source.name}: training needs one."
            )
        self.pipeline.set_random_seed(sample_seed(self.seed, epoch, index))
        transformed = self.pipeline(image=row.image, mask=row.semantic)
        return transformed["image"], transformed["mask"], row.id

    def _index(self, epoch: int, place: int) -> int:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.rows.source.order(self.seed, epoch)
        return int(self._order[place])


class EvaluationBatches(Dataset):
    """Evaluation batches by row indices; masks keep the original size.

    Args:
        rows: Rows with class indices.
        transform: Resizing of the images.
        labelled: Whether a mask is required; batches for prediction have none.
    """

    def __init__(self, rows: LabelledRows, transform: EvaluationTransform, labelled: bool = True) -> None:
        self.rows = rows
        self.transform = transform
        self.labelled = labelled

    def __getitem__(self, indices: list[int]) -> "dict[str, Any] | InputError | None":
        """Make the batch of these rows.

        Returns:
            Lists: ``image`` uint8 ``(3, H, W)``, ``semantic`` int64 ``(H0, W0)`` (or ``path``, where unlabelled),
            ``original_size``, ``id``; None where all rows were skipped. An error is returned, not raised.
        """
        batch: dict[str, list[Any]] = {"image": [], "original_size": [], "id": []}
        batch["semantic" if self.labelled else "path"] = []
        try:
            for index in indices:
                row = self.rows.row(index)
                if row is None:
                    continue
                batch["image"].append(_image_tensor(self.transform(row.image)))
                batch["original_size"].append(row.image.shape[:2])
                batch["id"].append(row.id)
                if not self.labelled:
                    batch["path"].append(row.path)
                elif row.semantic is None:
                    raise InputError(_no_mask(self.rows, index, row))
                else:
                    batch["semantic"].append(torch.from_numpy(row.semantic.astype(np.int64)))
        except InputError as error:
            return error
        return batch if batch["id"] else None


class SegmentationLoader(DataLoader):
    """Loader of whole batches that leaves out skipped ones and raises the errors of its workers as they are.

    A worker's exception would otherwise reach the user with the worker's traceback inside its message.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches as the dataset made them."""
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            if batch is not None:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. Tells Lightning that this loader can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore, see :meth:`state_dict`."""


def as_made(batch: Any) -> Any:
    """Collate function that leaves a batch as the dataset made it; the default one turns tuples into lists."""
    return batch


def one_thread(worker_id: int) -> None:
    """Restrict a worker to one thread: workers are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _no_mask(rows: LabelledRows, index: int, row: Row) -> str:
    return f"There is no mask in row {index} ('{row.id}') of {rows.source.name}: remove the row or use labelled data."


def _image_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
