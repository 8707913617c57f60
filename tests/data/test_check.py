"""`ovsl data check` finds what is wrong with a dataset, and nothing where nothing is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsl.__main__ import main
from tests.data.shards import png, record, write_shard

CLEAN = {"train": 6, "validation": 4, "test": 3}


def rows(split: str, count: int) -> list[dict]:
    """Rows of CamVid whose images no other split has."""
    first = {"train": 0, "validation": 100, "test": 200}[split]
    return [record(split, first + number) for number in range(count)]


def checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    splits: dict[str, list[dict]],
    *options: str,
) -> tuple[int, str]:
    """Write CamVid and look through it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVSL_DATA", str(tmp_path))
    for split, listed in splits.items():
        write_shard(tmp_path / f"camvid/{split}-00000-of-00001.parquet", listed)
    status = main(["data", "check", "camvid", *options])
    return status, capsys.readouterr().out


def test_a_clean_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {split: rows(split, count) for split, count in CLEAN.items()}
    status, said = checked(tmp_path, monkeypatch, capsys, splits)
    assert status == 0
    assert said.endswith("nothing suspicious\n")
    assert "train: 6 images of Parquet files 'camvid' (train), 6 looked at" in said
    assert "columns  image_id: string, image: " in said
    assert "sizes    32x24 (6)" in said
    result = json.loads(Path("runs/data/camvid.json").read_text())
    masks = [np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"]))) for row in splits["train"]]
    counted = result["splits"][0]["classes"]["sky"]
    assert counted == {"pixels": sum(int((mask == 0).sum()) for mask in masks), "images": 6}
    assert result["splits"][0]["ignored_pixels"] == sum(int((mask == 255).sum()) for mask in masks)
    for split in CLEAN:
        assert Image.open(f"runs/data/camvid-{split}.png").width > 400


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("label", "train: label value 11 is outside the vocabulary, in 2 images ('train-001', 'train-002')"),
        ("empty", "train: not one pixel is labelled in 1 images ('train-001')"),
        ("size", "train: 1 images cannot be read: Image and mask differ in size in row 1"),
        ("broken", "train: 1 images cannot be read: Cannot decode the image of row 1"),
        ("twice", "train: 1 images are there twice, such as 'train-000' and 'train-001'"),
        ("elsewhere", "1 images of test are in train too: 'train-000' of train is 'test-000' of test"),
        ("unlabelled", "% of the pixels have no label"),
    ],
)
def test_what_is_suspicious_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: str,
    message: str,
) -> None:
    splits = {split: rows(split, count) for split, count in CLEAN.items()}
    first, second, third = splits["train"][:3]
    other = np.full((24, 32), 11, np.uint8)
    other[:12] = 3
    match spoil:
        case "label":
            second["mask"] = third["mask"] = {"bytes": png(other), "path": None}
        case "empty":
            second["mask"] = {"bytes": png(np.full((24, 32), 255, np.uint8)), "path": None}
        case "size":
            second["mask"] = {"bytes": png(other[1:]), "path": None}
        case "broken":
            second["image"] = {"bytes": second["image"]["bytes"][:300], "path": None}
        case "twice":
            # The same pixels in another file.
            picture = Image.open(io.BytesIO(first["image"]["bytes"]))
            picture.save(tmp_path / "other.bmp")
            second["image"] = {"bytes": (tmp_path / "other.bmp").read_bytes(), "path": None}
        case "elsewhere":
            splits["test"][0] = {**first, "image_id": "test-000"}
        case "unlabelled":
            for row in splits["validation"]:
                mask = np.full((24, 32), 255, np.uint8)
                mask[0, 0] = 1
                row["mask"] = {"bytes": png(mask), "path": None}
    status, said = checked(tmp_path, monkeypatch, capsys, splits)
    assert status == 1
    found = [line for line in said.splitlines() if line.startswith("suspicious: ")]
    assert len(found) == 1, found
    assert message in found[0]


def test_samples_and_missing_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = checked(tmp_path, monkeypatch, capsys, {"train": rows("train", 6)}, "--samples", "2", "--to", "out")
    assert status == 0
    assert "6 images of Parquet files 'camvid' (train), 2 looked at" in said
    assert "cannot be opened: validation: Folder " in said
    assert Path("out/camvid-train.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give a name of the catalogue, or -c FILE"),
        (["camvidd"], "did you mean 'camvid'"),
        (["camvid"], "No split of 'camvid' can be opened; the first: train: Dataset 'camvid' is not here"),
    ],
)
def test_what_cannot_be_looked_through(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVSL_DATA", str(tmp_path))
    assert main(["data", "check", *arguments]) == 2
    assert message in capsys.readouterr().err
