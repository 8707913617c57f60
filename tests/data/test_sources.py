"""Rows of Parquet files, label transforms, and input that cannot be used."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovsl.data.parquet import ParquetSource
from ovsl.data.samples import LabelledRows, TrainingBatches
from ovsl.data.sources import INVALID_LABEL, Row, Source, label_table
from ovsl.data.transforms import TrainTransform
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary
from tests.data.shards import TRAIN, VALIDATION, png, record, write_shard, write_shards

CAMVID = Path(os.environ.get("OVSL_DATA", "/nowhere")) / "camvid"
WORDS = Vocabulary.from_words([f"class {index}" for index in range(11)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


def one_row(tmp_path: Path, **cells) -> ParquetSource:
    write_shard(tmp_path / "train-00000.parquet", [record("train", 0), {**record("train", 1), **cells}])
    return ParquetSource(str(tmp_path), id_column="image_id")


def encoded(image: Image.Image, form: str, **options) -> dict:
    file = io.BytesIO()
    image.save(file, form, **options)
    return {"bytes": file.getvalue(), "path": None}


def test_rows_come_back_as_written_in_any_order(folder):
    source = ParquetSource(str(folder), id_column="image_id", interleave=2)
    assert len(source) == sum(TRAIN)
    for index in [*source.order(0, 0)[:30], 86, 0, 45]:
        row = source.row(int(index))
        expected = np.random.default_rng(int(index)).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        assert row.id == f"train-{index:03d}"
        np.testing.assert_array_equal(row.image, expected)


@pytest.mark.parametrize("place", ["", "validation-*.parquet", "data"])
def test_files_by_folder_pattern_and_data_folder(folder, tmp_path, place):
    if place == "data":
        write_shards(tmp_path / "data")
        source = ParquetSource(str(tmp_path), "validation")
    else:
        source = ParquetSource(str(folder / place), "validation")
    assert len(source) == sum(VALIDATION)
    assert source.row(12).id == "00000012"


def test_a_source_in_use_can_be_pickled(folder):
    source = ParquetSource(str(folder), id_column="image_id")
    source.row(3)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.row(3).id == source.row(3).id


def test_images_become_rgb_without_rotation_and_masks_keep_their_index(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    grey = encoded(Image.new("L", (32, 24), 77), "JPEG", exif=exif)
    palette = Image.fromarray(np.full((24, 32), 7, np.uint8), "P")
    palette.putpalette([channel for index in range(256) for channel in (index, 0, 255 - index)])
    row = one_row(tmp_path, image=grey, mask=encoded(palette, "PNG")).row(1)
    assert row.image.shape == (24, 32, 3)
    assert (row.semantic == 7).all()


def test_sixteen_bit_masks_are_read(tmp_path):
    mask = {"bytes": png(np.full((24, 32), 846, np.uint16)), "path": None}
    assert (one_row(tmp_path, mask=mask).row(1).semantic == 846).all()


def test_columns_without_image_features_and_plain_bytes_are_read(tmp_path):
    rows = [{"image": cells["image"]["bytes"], "mask": cells["mask"]["bytes"]} for cells in [record("train", 0)]]
    write_shard(tmp_path / "train.parquet", rows)
    assert ParquetSource(str(tmp_path)).row(0).semantic.shape == (24, 32)


def test_label_tables():
    def mapped(transform, values, classes=150, source_ignore=255, ignore=255):
        return label_table(transform, source_ignore, classes, ignore)[values].tolist()

    assert mapped("identity", [0, 149, 150, 255]) == [0, 149, INVALID_LABEL, 255]
    assert mapped("reduce_zero_label", [0, 1, 150, 151, 255]) == [255, 0, 149, INVALID_LABEL, 255]
    assert mapped(-1, [1, 150, 0, 255]) == [0, 149, INVALID_LABEL, 255]
    assert mapped([3, 255, 4], [0, 1, 2, 3]) == [3, 255, 4, INVALID_LABEL]
    assert mapped({7: 0, 8: 1}, [7, 8, 9, 255]) == [0, 1, 255, 255]
    # Mapillary: the files ignore 65; a vocabulary of 847 classes ignores 65535.
    assert mapped("identity", [64, 65, 66], classes=65, source_ignore=65) == [64, 255, INVALID_LABEL]
    assert mapped("identity", [846, 65535], classes=847, source_ignore=65535, ignore=65535) == [846, 65535]


class OneMask(Source):
    name = "one mask"

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask

    def __len__(self) -> int:
        return 1

    def row(self, index: int) -> Row:
        return Row("only", np.zeros((*self.mask.shape, 3), np.uint8), self.mask)


@pytest.mark.parametrize(("value", "dtype"), [(11, np.uint8), (300, np.uint16), (70000, np.int32), (-3, np.int32)])
def test_label_outside_the_vocabulary_names_source_row_and_value(value, dtype):
    mask = np.zeros((4, 4), dtype)
    mask[2, 3] = value
    with pytest.raises(InputError, match=rf"value {value} in row 0 \('only'\) of one mask .* 11 classes"):
        LabelledRows(OneMask(mask), WORDS).row(0)


def test_the_crop_is_chosen_before_classes_are_hidden():
    mask = np.zeros((60, 60), np.uint8)
    mask[:, 30:] = 2  # with class 2 hidden, every window would be one class alone, or nothing
    transform = TrainTransform(20, scale=(1, 1), category_max_ratio=0.75)
    rows = LabelledRows(OneMask(mask), WORDS)
    for seed in range(5):
        shown, hidden = (TrainingBatches(rows, transform, 8, seed, classes)[0] for classes in ([], [2]))
        assert torch.equal(hidden["semantic"], shown["semantic"].where(shown["semantic"] != 2, 255))
        mixed = ((shown["semantic"] == 2).float().mean((1, 2)) - 0.5).abs() < 0.25
        assert mixed.float().mean() > 0.8


def test_other_size_corrupt_image_missing_mask_and_colour_mask_are_named_by_row(tmp_path):
    cases = {
        "differ in size": {"mask": {"bytes": png(np.zeros((24, 31), np.uint8)), "path": None}},
        "Cannot decode the image": {"image": {"bytes": record("train", 1)["image"]["bytes"][:300], "path": None}},
        "Cannot decode the mask": {"mask": {"bytes": b"", "path": "gone.png"}},
        "no mask": {"mask": None},
        "colour picture": {"mask": {"bytes": png(np.zeros((24, 32, 3), np.uint8)), "path": None}},
    }
    for index, (problem, cells) in enumerate(cases.items()):
        source = one_row(tmp_path / str(index), **cells)
        source.row(0)
        with pytest.raises(InputError, match=problem) as caught:
            source.row(1)
        assert "row 1 ('train-001')" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_files_columns_and_splits_that_do_not_exist(folder, tmp_path):
    with pytest.raises(InputError, match=r"No Parquet file matches .*none"):
        len(ParquetSource(str(tmp_path / "none-*.parquet")))
    with pytest.raises(InputError, match="no split 'test': use one of train, validation"):
        len(ParquetSource(str(folder), "test"))
    with pytest.raises(InputError, match="no column 'label': set it to one of image_id, image, mask"):
        len(ParquetSource(str(folder), mask_column="label"))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="Cannot open Parquet files"):
        len(ParquetSource(str(tmp_path)))


@pytest.mark.skipif(not CAMVID.is_dir(), reason="OVSL_DATA names no folder with camvid/")
def test_camvid_counts_and_labels():
    for split, rows in (("train", 367), ("validation", 101), ("test", 233)):
        source = ParquetSource(str(CAMVID), split, id_column="image_id")
        assert len(source) == rows
    row = LabelledRows(source, Vocabulary.load("camvid_11")).row(200)
    assert row.image.shape == (360, 480, 3)
    assert set(np.unique(row.semantic)) <= {*range(11), 255}
