"""From rows to batches: transforms applied, images as uint8 tensors."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ovsl.data.labelled import LabelledRows
from ovsl.data.order import orientation_order, sample_seed
from ovsl.data.regions import RegionMaps
from ovsl.data.sources import Row, Segments, UndecodableImageError
from ovsl.data.transforms import EvaluationTransform, TrainTransform
from ovsl.data.truth import countable
from ovsl.errors import InputError

# Undecodable rows in a row of the training order before `on_error: skip` gives up.
MAX_CONSECUTIVE_SKIPS = 100


class TrainingBatches(Dataset):
    """Training batches by position, see `order`.

    Args:
        rows: Rows with class indices.
        transform: Augmentation.
        batch_size: Samples per batch.
        seed: Seed of order and augmentation.
        hidden_classes: Class indices whose pixels become `ignore_index` and whose segments are left out. The crop is
            chosen before, as in ZegCLIP's code, where the loss hides them.
        portrait: Whether the image of each row is no wider than high, bool `(rows,)`, to make batches of images of one
            orientation; None takes them as they come.
    """

    def __init__(
        self,
        rows: LabelledRows,
        transform: TrainTransform,
        batch_size: int,
        seed: int,
        hidden_classes: Sequence[int] = (),
        portrait: np.ndarray | None = None,
    ) -> None:
        self.rows = rows
        self.portrait = portrait
        ignore_index = rows.vocabulary.ignore_index
        self.pipeline = transform.pipeline(ignore_index, rows.source.panoptic)
        self.batch_size = batch_size
        self.seed = seed
        self.hidden_classes = list(hidden_classes)
        self._shown = np.arange(max(len(rows.vocabulary), ignore_index + 1, 256)).astype(np.uint16)
        self._shown[self.hidden_classes] = ignore_index
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> "dict[str, Any] | InputError":
        """Make the batch whose first sample is at `position`.

        Returns:
            `image` uint8 `(B, 3, H, W)`, `semantic` uint8 or uint16 `(B, H, W)`, widened on the device by the data
            module, and `id`; from a panoptic source also `segment_ids` int32 `(B, H, W)` and `segment_classes`, an
            int64 `(N,)` for each image. An error is returned, not raised: the loader raises it in the main process.
        """
        try:
            rows = [self.sample(position + offset) for offset in range(self.batch_size)]
        except InputError as error:
            return error
        image, semantic = self.stack(rows)
        batch: dict[str, Any] = {"image": image, "semantic": semantic, "id": [row.id for row in rows]}
        segments = [row.segments for row in rows if row.segments is not None]
        if segments:
            # One map of ids, not one mask for each segment: masks are much larger, and cheap to make on the device.
            batch["segment_ids"] = torch.from_numpy(np.stack([entry.ids for entry in segments]).astype(np.int32))
            batch["segment_classes"] = [torch.from_numpy(entry.classes) for entry in segments]
        return batch

    def stack(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Put augmented rows together, hidden classes ignored.

        Returns:
            uint8 `(B, 3, H, W)`, and masks `(B, H, W)` of 8 or 16 bits.
        """
        masks = np.stack([np.asarray(row.semantic) for row in rows])
        if self.hidden_classes:
            flat = masks.reshape(len(masks), -1)
            small = self._shown[:256].astype(np.uint8)
            masks = (cv2.LUT(flat, small) if masks.dtype == np.uint8 else self._shown[flat]).reshape(masks.shape)
        return _planes([row.image for row in rows]), torch.from_numpy(masks)

    def sample(self, position: int) -> Row:
        """Return the augmented row at a position.

        Its mask is uint8 or uint16 and still has the hidden classes; its segments are those of `countable`.
        """
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
        if row.segments is None:
            transformed = self.pipeline(image=row.image, mask=row.semantic)
            return Row(row.id, transformed["image"], transformed["mask"])
        segments = countable(row.segments, self.rows.vocabulary, self.hidden_classes)
        dtype = np.uint8 if len(segments.classes) < 256 and row.semantic.dtype == np.uint8 else np.uint16
        transformed = self.pipeline(image=row.image, mask=np.dstack([row.semantic, segments.ids]).astype(dtype))
        semantic, ids = np.moveaxis(transformed["mask"], -1, 0)
        return Row(row.id, transformed["image"], semantic, segments=Segments(ids, segments.classes, segments.crowd))

    def _index(self, epoch: int, place: int) -> int:
        if epoch != self._epoch:
            order = self.rows.source.order(self.seed, epoch)
            if self.portrait is not None:
                # Batches are numbered over all epochs: the first may have begun in the one before.
                order = orientation_order(order, self.portrait, self.batch_size, -epoch * len(order) % self.batch_size)
            self._epoch, self._order = epoch, order
        return int(self._order[place])


class EvaluationBatches(Dataset):
    """Evaluation batches by row indices; masks keep the original size.

    Args:
        rows: Rows with class indices.
        transform: Resizing of the images.
        labelled: Whether a mask is required; batches for prediction have none.
        regions: Where region maps come from; None takes those of the source, if it has any.
        smallest_side: Pixels below which the network takes no image; one that is smaller counts as undecodable.
    """

    def __init__(
        self,
        rows: LabelledRows,
        transform: EvaluationTransform,
        labelled: bool = True,
        regions: RegionMaps | None = None,
        smallest_side: int = 1,
    ) -> None:
        self.rows = rows
        self.transform = transform
        self.labelled = labelled
        self.regions = regions
        self.smallest_side = smallest_side

    def __getitem__(self, indices: list[int]) -> "dict[str, Any] | InputError | None":
        """Make the batch of these rows.

        Returns:
            Lists: `image` uint8 `(3, H, W)`, `semantic` int64 `(H0, W0)` (or `path`, where unlabelled),
            `original_size`, `id`; from a panoptic source also `segment_ids` int32 `(H0, W0)`,
            `segment_classes` int64 `(N,)` and `segment_crowd` bool `(N,)`; from one with instances also
            `instance_masks`, `instance_classes` and `instance_crowd`; where there are region maps, `regions` int32
            `(H0, W0)`. None where all rows were skipped. An error is returned, not raised.
        """
        batch: dict[str, list[Any]] = {"image": [], "original_size": [], "id": []}
        batch["semantic" if self.labelled else "path"] = []
        if self.labelled and self.rows.source.panoptic:
            batch |= {"segment_ids": [], "segment_classes": [], "segment_crowd": []}
        if self.labelled and self.rows.source.has_instances:
            batch |= {"instance_masks": [], "instance_classes": [], "instance_crowd": []}
        try:
            for index in indices:
                row = self.rows.row(index)
                if row is None:
                    continue
                image = self.transform(row.image)
                if min(image.shape[:2]) < self.smallest_side:
                    self.rows.skip(_too_small(self.rows, index, row, image))
                    continue
                batch["image"].append(_image_tensor(image))
                batch["original_size"].append(row.image.shape[:2])
                batch["id"].append(row.id)
                regions = row.regions if self.regions is None else self.regions(row)
                if regions is not None:
                    batch.setdefault("regions", []).append(torch.from_numpy(regions.astype(np.int32)))
                if not self.labelled:
                    batch["path"].append(row.path)
                elif row.semantic is None:
                    raise InputError(_no_mask(self.rows, index, row))
                else:
                    batch["semantic"].append(torch.from_numpy(row.semantic.astype(np.int64)))
                if self.labelled and row.segments is not None:
                    batch["segment_ids"].append(torch.from_numpy(row.segments.ids.astype(np.int32)))
                    batch["segment_classes"].append(torch.from_numpy(row.segments.classes))
                    batch["segment_crowd"].append(torch.from_numpy(row.segments.crowd))
                if self.labelled and row.instances is not None:
                    batch["instance_masks"].append(torch.from_numpy(row.instances.masks))
                    batch["instance_classes"].append(torch.from_numpy(row.instances.classes))
                    batch["instance_crowd"].append(torch.from_numpy(row.instances.crowd))
        except InputError as error:
            return error
        return batch if batch["id"] else None


def _no_mask(rows: LabelledRows, index: int, row: Row) -> str:
    return f"There is no mask in row {index} ('{row.id}') of {rows.source.name}: remove the row or use labelled data."


def _planes(images: Sequence[np.ndarray]) -> Tensor:
    """Stack images of one size, uint8 `(H, W, 3)`, colour by colour: `(B, 3, H, W)`."""
    planes = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for image, plane in zip(images, planes, strict=True):
        cv2.split(image, list(plane))
    return torch.from_numpy(planes)


def _too_small(rows: LabelledRows, index: int, row: Row, image: np.ndarray) -> UndecodableImageError:
    size = f"{image.shape[1]}x{image.shape[0]} pixels"
    return UndecodableImageError(
        f"Row {index} ('{row.id}') of {rows.source.name} with its {size} is smaller than one patch of the network: "
        "leave it out, set a larger evaluation_transform, or on_error to skip."
    )


def _image_tensor(image: np.ndarray) -> Tensor:
    return _planes([image])[0]
