"""Panoptic ground truth: from Parquet and the toy world through augmentation into batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from ovsl.data import (
    EvaluationTransform,
    ParquetSource,
    Row,
    SegmentationDataModule,
    Segments,
    Source,
    ToySource,
    TrainTransform,
)
from ovsl.data.samples import EvaluationBatches, LabelledRows, TrainingBatches
from ovsl.data.truth import run_length_mask
from ovsl.errors import InputError
from ovsl.losses import MaskTargets
from ovsl.vocabulary import Vocabulary
from tests.data.shards import png, write_shard

TOY = Vocabulary.load("toy", split="zero_shot")
WORDS = replace(Vocabulary.from_words(["cat", "dog", "grass", "sky"]), things=(True, True, False, False))

# Two cats, a crowd of dogs, and grass in two pieces; ids are not consecutive and use all three colour channels.
IDS = {70000: 0, 9: 0, 300: 1, 5: 2, 16_000_000: 2}


def panoptic_record(number: int, **cells) -> dict:
    """A row of 24 x 32 pixels: a column of eight pixels for each segment of `IDS`, the last one cut short by void."""
    stored = np.repeat(np.array([*IDS]), [8, 8, 8, 4, 4])[None].repeat(24, axis=0)
    stored[20:, 28:] = 0
    colours = np.stack([stored % 256, stored // 256 % 256, stored // 65536], axis=-1).astype(np.uint8)
    semantic = np.select([stored == key for key in IDS], list(IDS.values()), 255).astype(np.uint8)
    image = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    listed = [
        {"id": key, "category_id": label, "isthing": label < 2, "iscrowd": key == 300, "bbox": [0, 0, 1, 1], "area": 1}
        for key, label in sorted(IDS.items(), reverse=True)
    ]
    row = {"image_id": f"{number}", "image": png(image), "mask": png(semantic), "panoptic": png(colours)}
    return {**row, "segments_info": listed, **cells}


def parquet(folder: Path, rows: int = 4, **cells) -> ParquetSource:
    write_shard(folder / "train.parquet", [panoptic_record(number, **cells) for number in range(rows)])
    return ParquetSource(str(folder), id_column="image_id", panoptic_column="panoptic")


@pytest.fixture
def source(tmp_path) -> ParquetSource:
    return parquet(tmp_path)


def test_a_parquet_row_comes_back_with_its_segments(source):
    batch = EvaluationBatches(LabelledRows(source, WORDS), EvaluationTransform())[[1]]
    ids, classes, crowd = (batch[f"segment_{name}"][0] for name in ("ids", "classes", "crowd"))
    assert sorted(zip(classes.tolist(), crowd.tolist(), strict=True)) == [
        (0, False),
        (0, False),
        (1, True),
        (2, False),
        (2, False),
    ]
    assert torch.equal(torch.cat([torch.tensor([255]), classes])[ids], batch["semantic"][0])
    areas = {(int(classes[number - 1]), int((ids == number).sum())) for number in range(1, 6)}
    assert areas == {(0, 192), (1, 192), (2, 96), (2, 80)}
    assert (ids[20:, 28:] == 0).all()


def test_targets_have_no_crowd_and_one_mask_for_stuff(source):
    transform = TrainTransform((24, 32), scale=(1, 1), flip=0)
    batch = TrainingBatches(LabelledRows(source, WORDS), transform, 2, 0)[0]
    targets = MaskTargets.from_segments(batch["segment_ids"], batch["segment_classes"])
    assert targets.counts == (3, 3)
    found = sorted(zip(targets.labels.tolist(), targets.masks.sum((1, 2)).tolist(), strict=True))
    assert found == [(0, 192), (0, 192), (0, 192), (0, 192), (2, 176), (2, 176)]
    crowd = batch["semantic"] == 1
    assert not (targets.masks & crowd[targets.slots[0]]).any()


@pytest.mark.parametrize("category_max_ratio", [None, 0.75])
@pytest.mark.parametrize("size", [(64, 64), (200, 150)], ids=["cropped", "padded"])
def test_segments_stay_on_their_classes_through_augmentation(category_max_ratio, size):
    transform = TrainTransform(size, scale=(0.5, 2), photometric=True, category_max_ratio=category_max_ratio)
    rows = LabelledRows(ToySource(3, length=40, size=96), Vocabulary.load("toy"))
    batches = TrainingBatches(rows, transform, 8, seed=1)
    empty = 0
    for position in range(0, 40, 8):
        batch = batches[position]
        targets = MaskTargets.from_segments(batch["segment_ids"], batch["segment_classes"])
        image, _ = targets.slots
        semantic = batch["semantic"].long()[image]
        assert (semantic == targets.labels[:, None, None])[targets.masks].all()
        covered = torch.zeros_like(batch["semantic"], dtype=torch.int64).index_add_(0, image, targets.masks.long())
        assert torch.equal(covered, (batch["semantic"] != 255).long()), "every pixel of the scene is in one segment"
        empty += int((~targets.masks.flatten(1).any(1)).sum())
    assert (empty > 0) == (size == (64, 64)), "a small crop cuts segments away; they keep their place"


def test_augmentation_is_the_same_with_and_without_segments():
    transform = TrainTransform(64, photometric=True, category_max_ratio=0.75)
    first, second = (
        TrainingBatches(LabelledRows(ToySource(3, 16, 96, panoptic), TOY), transform, 8, seed=1)[8]
        for panoptic in (True, False)
    )
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["semantic"], second["semantic"])
    assert "segment_ids" not in second


def test_segments_of_unseen_classes_do_not_reach_training():
    def batch(ignore_unseen: bool) -> dict:
        module = SegmentationDataModule(
            ToySource(0, 64, 64),
            "toy",
            "zero_shot",
            ignore_unseen,
            train_transform=TrainTransform(64),
            batch_size=64,
            num_workers=0,
        )
        return next(iter(module.train_dataloader()))

    unseen = torch.tensor(TOY.unseen_indices)
    inductive, transductive = batch(True), batch(False)
    assert not torch.isin(torch.cat(inductive["segment_classes"]), unseen).any()
    assert torch.isin(torch.cat(transductive["segment_classes"]), unseen).any()
    assert (inductive["segment_ids"][inductive["semantic"] == 255] == 0).all()


def test_a_crop_is_chosen_while_unseen_labels_are_there():
    """As officially: pixels of unseen classes count in the share of a class, and are hidden from the loss."""

    def batch(hidden: list[int]) -> dict:
        rows = LabelledRows(ToySource(3, 32, 96, panoptic=False), TOY)
        return TrainingBatches(rows, TrainTransform(32, category_max_ratio=0.5), 32, seed=1, hidden_classes=hidden)[0]

    hidden, shown = batch(TOY.unseen_indices), batch([])
    assert torch.equal(hidden["image"], shown["image"]), "the same crops"
    unseen = torch.isin(shown["semantic"], torch.tensor(TOY.unseen_indices))
    assert unseen.any()
    assert torch.equal(hidden["semantic"], shown["semantic"].masked_fill(unseen, 255))


class OneRow(Source):
    name = "one row"
    panoptic = True

    def __init__(self, segments: Segments) -> None:
        self.segments = segments

    def __len__(self) -> int:
        return 1

    def row(self, index: int) -> Row:
        return Row("only", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), segments=self.segments)


def test_segments_without_a_pixel_are_left_out_and_the_others_keep_theirs():
    ids = np.array([[1, 1, 3, 3]] * 4)
    segments = Segments(ids, np.array([0, 1, 2]), np.array([False, False, True]))
    found = LabelledRows(OneRow(segments), WORDS).row(0).segments
    assert found.classes.tolist() == [0, 2]
    assert found.crowd.tolist() == [False, True]
    assert found.ids[0].tolist() == [1, 1, 2, 2]


def test_a_scene_without_targets_gives_an_empty_batch():
    none = Segments(np.zeros((4, 4), np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
    batch = TrainingBatches(LabelledRows(OneRow(none), WORDS), TrainTransform(4), 2, 0)[0]
    targets = MaskTargets.from_segments(batch["segment_ids"], batch["segment_classes"])
    assert targets.masks.shape == (0, 4, 4)
    assert targets.counts == (0, 0)


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ({"segments_info": [{"id": 9, "category_id": 0, "iscrowd": 0}]}, r"Segment \d+ of the panoptic map of row 0"),
        ({"segments_info": [{"name": 9}]}, "does not list segments with id and category_id"),
        ({"panoptic": png(np.zeros((24, 31, 3), np.uint8))}, "panoptic map differ in size in row 0"),
        ({"panoptic": b"broken"}, "Cannot decode the panoptic map of row 0"),
        ({"segments_info": None}, "no panoptic map in row 0"),
        (
            {"segments_info": [{"id": key, "category_id": 4} for key in IDS]},
            r"Category 4 of a segment in row 0 .* outside the 4 classes",
        ),
    ],
)
def test_broken_panoptic_rows_are_named(tmp_path, cells, problem):
    with pytest.raises(InputError, match=problem) as caught:
        LabelledRows(parquet(tmp_path, rows=1, **cells), WORDS).row(0)
    assert "\n" not in str(caught.value)


def run_lengths(masks: np.ndarray) -> list[dict]:
    """The code of pycocotools, as text."""
    codes = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": code["size"], "counts": code["counts"].decode()} for code in codes]


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (480, 640)])
def test_run_length_codes_are_those_of_the_coco_api(size):
    draw = np.random.default_rng(0)
    noise = draw.random((6, *size)) < draw.random((6, 1, 1)) ** 3
    blocks = np.kron(draw.random((4, size[0], 1)) < 0.1, np.ones((1, 1, size[1]), bool))
    masks = np.concatenate([noise, blocks, np.zeros((1, *size), bool), np.ones((1, *size), bool)])
    for mask, code in zip(masks, run_lengths(masks), strict=True):
        np.testing.assert_array_equal(run_length_mask(code["counts"], size), mask)


def test_instances_have_a_column_of_their_own(tmp_path):
    masks = np.zeros((3, 24, 32), bool)
    masks[0, :, :20] = masks[1, 4:, 10:] = masks[2, 20:] = True  # two overlap; the panoptic map knows neither
    listed = [
        {"category_id": label, "iscrowd": label, "segmentation": code}
        for label, code in zip([0, 0, 1], run_lengths(masks), strict=True)
    ]
    row = panoptic_record(0, instances=listed), panoptic_record(1, instances=[])
    write_shard(tmp_path / "train.parquet", row)
    source = ParquetSource(str(tmp_path), panoptic_column="panoptic", instances_column="instances")
    batch = EvaluationBatches(LabelledRows(source, WORDS), EvaluationTransform())[[0, 1]]
    np.testing.assert_array_equal(batch["instance_masks"][0], masks)
    assert batch["instance_classes"][0].tolist() == [0, 0, 1]
    assert batch["instance_crowd"][0].tolist() == [False, False, True]
    assert batch["instance_masks"][1].shape == (0, 24, 32)
    assert len(batch["segment_classes"][0]) == 5


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"category_id": 0, "segmentation": {"counts": "11"}}, "row 0 .* a run-length code of the size"),
        ({"category_id": 0, "segmentation": [[0, 0, 4, 4]]}, "row 0 .* a run-length code"),
        ({"category_id": 4, "segmentation": {"counts": run_lengths(np.ones((1, 24, 32)))[0]["counts"]}}, "Category 4"),
    ],
)
def test_broken_instances_are_named(tmp_path, entry, problem):
    write_shard(tmp_path / "train.parquet", [panoptic_record(0, instances=[entry])])
    source = ParquetSource(str(tmp_path), panoptic_column="panoptic", instances_column="instances")
    with pytest.raises(InputError, match=problem):
        LabelledRows(source, WORDS).row(0)


def _column(folder: Path) -> None:
    parquet(folder)
    len(ParquetSource(str(folder), panoptic_column="segmentation"))


def _vocabulary(folder: Path) -> None:
    LabelledRows(parquet(folder), Vocabulary.from_words(["cat", "dog"]))


@pytest.mark.parametrize(
    ("use", "message"), [(_column, "no column 'segmentation'"), (_vocabulary, "does not say which classes are things")]
)
def test_wrong_settings_are_explained(tmp_path, use: Callable[[Path], None], message):
    with pytest.raises(InputError, match=message):
        use(tmp_path)
