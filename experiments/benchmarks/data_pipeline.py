"""Data on one core: its parts in plain forms against those of the package, and images per second of all of it.

`python experiments/benchmarks/data_pipeline.py` prints images per second: decode, labels, augmentation, batches of 16.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from PIL import Image
from timing import Comparison, machine
from torch import Tensor

from ovsl.data import TrainTransform
from ovsl.data.labelled import LabelledRows
from ovsl.data.samples import TrainingBatches
from ovsl.data.sources import Row, Source, decode_image, decode_pixels
from ovsl.vocabulary import Vocabulary

CLASSES = 150
RECIPE = TrainTransform(512, short_side=512, long_side=2048, photometric=True, category_max_ratio=0.75)


class Photos(Source):
    """Pictures of 512x683 with structure at every scale, as JPEG of quality 90 and PNG, in memory.

    Args:
        count: Number of rows.
    """

    name = "photos in memory"

    def __init__(self, count: int = 32) -> None:
        generator = np.random.default_rng(0)
        self.cells = [(_encoded(_photo(generator), "JPEG"), _encoded(_mask(generator), "PNG")) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.cells)

    def row(self, index: int) -> Row:
        """Decode a row."""
        image, mask = self.cells[index]
        return Row(str(index), decode_pixels(image, "image", mode="RGB"), decode_pixels(mask, "mask"))


def _photo(generator: np.random.Generator) -> np.ndarray:
    image = 4 * generator.normal(size=(512, 683, 3))
    for scale in (4, 8, 16, 32, 64, 128, 256):
        small = generator.normal(size=(512 * scale // 1024 + 2, 683 * scale // 1024 + 2, 3)).astype(np.float32)
        image += 40 * (4 / scale) ** 0.6 * cv2.resize(small, (683, 512), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 120, 0, 255).astype(np.uint8)


def _mask(generator: np.random.Generator) -> np.ndarray:
    areas = generator.integers(0, CLASSES, (9, 12)).astype(np.uint8)
    return cv2.resize(areas, (683, 512), interpolation=cv2.INTER_NEAREST)


def _encoded(pixels: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, quality=90)
    return buffer.getvalue()


def comparisons() -> Iterator[Comparison]:
    """Compare decoding, the table of labels, the choice of a crop, and a batch of 16."""
    photos = Photos(16)
    vocabulary = Vocabulary.from_words([f"class {number}" for number in range(CLASSES)])
    rows = LabelledRows(photos, vocabulary)
    batches = TrainingBatches(rows, RECIPE, 16, 0)
    samples = [batches.sample(position) for position in range(16)]
    raw = [decode_pixels(mask, "mask") for _, mask in photos.cells]
    table = np.where(np.arange(65536) == 255, 255, np.where(np.arange(65536) < CLASSES, np.arange(65536), -1))

    def labels_by_index() -> list[np.ndarray]:
        found = [table.astype(np.int32)[mask] for mask in raw]
        assert min(labels.min() for labels in found) >= 0
        return [labels.astype(np.uint8) for labels in found]

    def stacked() -> list[np.ndarray]:
        image = torch.from_numpy(np.stack([row.image for row in samples])).permute(0, 3, 1, 2).contiguous()
        shown = np.arange(256)
        masks = torch.from_numpy(shown[np.stack([np.asarray(row.semantic) for row in samples])])
        return [image.numpy(), masks.numpy()]

    def planes() -> list[np.ndarray]:
        images, masks = batches.stack(samples)
        return [images.numpy(), masks.numpy()]

    yield Comparison(
        "decode 16 JPEGs of 512x683",
        lambda: [np.asarray(decode_image(image, "image", mode="RGB")) for image, _ in photos.cells],
        lambda: [decode_pixels(image, "image", mode="RGB") for image, _ in photos.cells],
        _differing,
    )
    yield Comparison(
        "decode 16 masks, PNG",
        lambda: [np.asarray(decode_image(mask, "mask")) for _, mask in photos.cells],
        lambda: [decode_pixels(mask, "mask") for _, mask in photos.cells],
        _differing,
    )
    yield Comparison(
        "labels of 16 masks", labels_by_index, lambda: [rows.semantic(mask, 0, "") for mask in raw], _differing
    )
    yield Comparison("a batch of 16 crops of 512x512", stacked, planes, _differing)


def _differing(before: list[np.ndarray], after: list[np.ndarray]) -> str:
    different = sum(int((one != other).sum()) for one, other in zip(before, after, strict=True))
    return f"{different} of {sum(one.size for one in before)} differ"


def images_per_second(rounds: int = 6) -> tuple[float, float]:
    """Median and best of some batches, by processor time."""
    vocabulary = Vocabulary.from_words([f"class {number}" for number in range(CLASSES)])
    batches = TrainingBatches(LabelledRows(Photos(), vocabulary), RECIPE, 16, 0)
    found: list[float] = []
    for index in range(rounds + 1):
        start = time.process_time()
        batch: dict[str, Tensor] = batches[16 * index]  # type: ignore[assignment]
        found.append(len(batch["image"]) / (time.process_time() - start))
    return statistics.median(found[1:]), max(found[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(machine())
    print("{:.0f} images/s ({:.0f} in the best batch) on one core: 512x683 -> 512x512".format(*images_per_second()))
