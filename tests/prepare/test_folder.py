"""A folder of your own as Parquet files: the same labels as the files, in splits that the folder or its names make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovsl.__main__ import main
from ovsl.data import FolderSource, ParquetSource, SegmentationDataModule
from tests.prepare.trees import labels, write_image, write_labels


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten photos with masks of three classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        write_image(tmp_path / f"mine/images/{number}.jpg", number)
        write_labels(tmp_path / f"mine/masks/{number}.png", labels(number, range(3), 255))
    (tmp_path / "words.txt").write_text("road\nsky\ncar, automobile\n")
    return tmp_path / "mine"


def prepare(*options: str) -> int:
    return main(["prepare", "folder", "--from", "mine", "--to", "out", "--vocabulary", "words.txt", *options])


def same_rows(source: FolderSource, split: str) -> None:
    made = ParquetSource("out", split, id_column="image_id")
    assert len(made) == len(source)
    for index in range(len(source)):
        ours, theirs = made.row(index), source.row(index)
        assert ours.id == theirs.id
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.semantic, theirs.semantic)


def test_splits_by_share_are_those_of_the_source(mine: Path) -> None:
    assert prepare("--test_share", "0.3", "--workers", "1") == 0
    for split in ("train", "test"):
        same_rows(FolderSource("mine/images", "mine/masks", split=split, test_share=0.3), split)
    data = SegmentationDataModule(ParquetSource("out"), "words.txt", batch_size=2, num_workers=0)
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 512, 512)


def test_splits_by_folders_and_masks_in_colours(mine: Path) -> None:
    colors = np.zeros((256, 3), np.uint8)
    colors[:3], colors[255] = [(255, 0, 0), (0, 255, 0), (0, 0, 255)], (9, 9, 9)
    for number, split in enumerate(["train", "train", "val"]):
        write_image(mine / f"photos/{split}/{number}.jpg", number)
        write_labels(mine / f"photos/{split}/{number}_color.png", colors[labels(number, range(3), 255)])
    listed, ignored = '["#ff0000", "#00ff00", "#0000ff"]', '["#090909"]'
    options = ["--images", "photos", "--masks", "null", "--mask_suffix", "_color", "--colors", listed]
    assert prepare(*options, "--ignore_colors", ignored, "--workers", "1") == 0
    for split, name in (("train", "train"), ("validation", "val")):
        source = FolderSource(
            f"mine/photos/{name}", None, "_color", colors=["#ff0000", "#00ff00", "#0000ff"], ignore_colors=["#090909"]
        )
        same_rows(source, split)


def test_a_list(mine: Path) -> None:
    lines = [f"images/{n}.jpg,masks/{n}.png,{'train' if n else 'test'}" for n in range(4)]
    (mine / "all.csv").write_text("image,mask,split\n" + "\n".join(lines) + "\n")
    assert prepare("--from", "mine/all.csv", "--workers", "1") == 0
    for split in ("train", "test"):
        same_rows(FolderSource("mine/all.csv", split=split), split)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            "label",
            "'mine/masks/4.png' has the label value 3 at (0, 0), which your vocabulary does not have",
        ),
        ("missing", "1 of the 20 files of folder 'mine/images' (train) are missing, the first is 'mine/masks/4.png'"),
        ("masks", "There is no folder 'mine/masks'"),
        ("split", "'mine' has no split 'validation': use train, test"),
    ],
)
def test_mistakes(mine: Path, spoil: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--workers", "1"]
    match spoil:
        case "label":
            write_labels(mine / "masks/4.png", np.full((24, 32), 3, np.uint8))
        case "missing":
            (mine / "masks/4.png").unlink()
        case "masks":
            (mine / "masks").rename("elsewhere")
        case "split":
            options += ["--splits", "[validation]"]
    assert prepare(*options) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()
