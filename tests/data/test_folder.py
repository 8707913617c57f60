"""Images and masks of your own: found by name, by suffix or by list; labels by index or by colour."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsl.data import EvaluationSet, FolderSource, SegmentationDataModule, TrainTransform
from ovsl.data.samples import LabelledRows
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary
from tests.data.recorder import Recorder, trainer

WORDS = ["road", "sky", "car"]


def photo(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def mask(number: int) -> np.ndarray:
    return np.random.default_rng([number, 1]).choice([0, 1, 2, 255], (24, 32)).astype(np.uint8)


def save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve photos and masks in two folders, some of them deeper."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        name = f"{number}" if number < 9 else f"deep/er/{number}"
        save(tmp_path / f"images/{name}.{'png' if number % 2 else 'webp'}", photo(number))
        save(tmp_path / f"masks/{name}.png", mask(number))
    return tmp_path


def test_rows_are_the_files_in_natural_order(folder: Path) -> None:
    source = FolderSource("images", "masks")
    assert [pair.id for pair in source.pairs] == [*map(str, range(9)), "deep/er/9", "deep/er/10", "deep/er/11"]
    for index in (1, 9, 11):
        row = source.row(index)
        np.testing.assert_array_equal(row.image, photo(index))
        np.testing.assert_array_equal(row.semantic, mask(index))
    assert pickle.loads(pickle.dumps(source)).row(9).id == "deep/er/9"
    assert not source.portrait().any()


def test_one_folder_by_suffix_and_the_folder_of_all_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVSL_DATA", raising=False)
    for number in range(3):
        save(folder / f"data/both/{number}.png", photo(number))
        save(folder / f"data/both/{number}_labels.png", mask(number))
    source = FolderSource("both", mask_suffix="_labels")
    assert [pair.id for pair in source.pairs] == ["0", "1", "2"]
    np.testing.assert_array_equal(source.row(2).semantic, mask(2))
    monkeypatch.setenv("OVSL_DATA", str(folder))
    assert len(FolderSource("images", "masks")) == 12


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_list_with_splits(folder: Path, kind: str) -> None:
    listed = [
        {"image": f"../images/{n}.{'png' if n % 2 else 'webp'}", "mask": f"../masks/{n}.png", "id": f"number {n}",
         "split": "train" if n < 6 else "val"}
        for n in range(9)
    ]  # fmt: skip
    (folder / "lists").mkdir()
    lines = [",".join(listed[0]), *(",".join(entry.values()) for entry in listed)]
    text = "\n".join(lines) if kind == "csv" else json.dumps(listed)
    (folder / f"lists/all.{kind}").write_text(text)
    source = FolderSource(f"lists/all.{kind}", split="val")
    assert [pair.id for pair in source.pairs] == ["number 6", "number 7", "number 8"]
    np.testing.assert_array_equal(source.row(1).image, photo(7))
    assert len(FolderSource(f"lists/all.{kind}")) == 9
    with pytest.raises(InputError, match=r"no image in split 'test': use one of train, val"):
        len(FolderSource(f"lists/all.{kind}", split="test"))


def test_parts_by_share_cover_all_and_do_not_depend_on_the_rest(folder: Path) -> None:
    train, test = (FolderSource("images", "masks", split=part, test_share=0.25) for part in ("train", "test"))
    ids = [{pair.id for pair in part.pairs} for part in (train, test)]
    assert (len(train), len(test)) == (9, 3)
    assert not ids[0] & ids[1]
    for number in range(100, 104):
        save(folder / f"images/{number}.png", photo(number))
        save(folder / f"masks/{number}.png", mask(number))
    grown = {pair.id for pair in FolderSource("images", "masks", split="test", test_share=0.25).pairs}
    assert len(grown) == 4
    assert len(grown & ids[0]) <= 1, "at most one photo of training moves to the test split"


def test_labels_by_colour(folder: Path) -> None:
    colors = np.zeros((256, 3), np.uint8)
    colors[:3], colors[255] = [(255, 0, 0), (0, 200, 10), (1, 2, 3)], (255, 255, 255)
    save(folder / "coloured/a.png", photo(0))
    save(folder / "coloured/a_mask.png", colors[mask(0)])
    indexed = Image.fromarray(colors[mask(0)]).convert("P", palette=Image.Palette.ADAPTIVE)
    save(folder / "coloured/b.png", photo(0))
    indexed.save(folder / "coloured/b_mask.png")
    white = ["#ffffff"]
    listed = FolderSource("coloured", None, "_mask", colors=["#ff0000", "#00c80a", "#010203"], ignore_colors=white)
    (folder / "words.csv").write_text("name,color\nroad,#ff0000\nsky,#00c80a\ncar,#010203\n")
    of_file = FolderSource("coloured", None, "_mask", colors="words.csv", ignore_colors=white)
    for source in (listed, of_file):
        for index in range(2):
            np.testing.assert_array_equal(source.row(index).semantic, mask(0))
    with pytest.raises(
        InputError, match=r"a_mask.png' has the colour #ffffff at \(\d+, \d+\), .* none of the 3 listed"
    ):
        FolderSource("coloured", None, "_mask", colors="words.csv").row(0)
    with pytest.raises(InputError, match="colour #ff0000 stands for more than one label"):
        FolderSource("coloured", None, "_mask", colors=["#ff0000"], ignore_colors=["#ff0000"]).row(0)
    with pytest.raises(InputError, match=r"'coloured/a_mask.png' is a colour picture: set colors"):
        FolderSource("coloured", None, "_mask").row(0)


def test_the_fingerprint_knows_exchanged_files(folder: Path) -> None:
    before = FolderSource("images", "masks").fingerprint()
    assert FolderSource("images", "masks").fingerprint() == before
    data = bytearray((folder / "images/4.webp").read_bytes())
    data[-3] ^= 1
    (folder / "images/4.webp").write_bytes(data)
    assert FolderSource("images", "masks").fingerprint() != before


def data(workers: int) -> SegmentationDataModule:
    source = FolderSource("images", "masks", split="train")
    return SegmentationDataModule(
        source,
        WORDS,
        evaluation={"mine": EvaluationSet(WORDS, validation=FolderSource("images", "masks", split="test"))},
        train_transform=TrainTransform(16),
        batch_size=4,
        num_workers=workers,
    )


def test_a_resumed_run_sees_what_an_unbroken_one_does_with_any_number_of_workers(folder: Path) -> None:
    whole, resumed = Recorder(), Recorder()
    loop = trainer(9)
    loop.fit(whole, data(0), ckpt_path=None)
    first = trainer(4)
    first.fit(Recorder(), data(2))
    first.save_checkpoint("stopped.ckpt")
    trainer(9).fit(resumed, data(2), ckpt_path="stopped.ckpt")
    assert resumed.trained == whole.trained[4:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "masks"), "no folder 'nowhere'"),
        (("images", "nowhere"), "no folder 'nowhere'"),
        (("images",), "Set masks to their folder, or mask_suffix"),
        (("images", "masks", "_x"), "12 of the 24 files of folder 'images' are missing, the first is 'masks/0_x.png'"),
        (("empty", "masks"), "no image .* below 'empty'"),
        (("images", "masks", "", "minival"), "no image in split 'minival': use one of train, test"),
        (("images", "masks", "", "test", 1.5), "test_share is 1.5"),
        (("list.csv",), "Entry 2 of 'list.csv' lacks an image or a mask"),
        (("cut.json",), "Cannot read the list of images 'cut.json'"),
        (("gone.json",), "Cannot read the list of images 'gone.json'"),
    ],
)
def test_what_cannot_be_read_is_named(folder: Path, arguments: tuple, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "list.csv").write_text("image,mask\na.png,b.png\nc.png,\n")
    (folder / "cut.json").write_text('[{"image"')
    with pytest.raises(InputError, match=message):
        len(FolderSource(*arguments))


def test_rows_that_do_not_fit_are_named_by_their_files(folder: Path) -> None:
    rows = LabelledRows(FolderSource("images", "masks"), Vocabulary.from_words(WORDS[:2]))
    with pytest.raises(InputError, match=r"Label value 2 in row 0 \('0'\) of folder 'images' .* the 2 classes"):
        rows.row(0)
    save(folder / "masks/1.png", mask(1)[:-1])
    with pytest.raises(InputError, match=r"'images/1.png' is 32x24, 'masks/1.png' 32x23"):
        rows.row(1)
    (folder / "images/2.webp").rename(folder / "images/1.jpg")
    with pytest.raises(InputError, match="two images '1'"):
        len(FolderSource("images", "masks"))
