"""The best and worst images of a test, and the confusion of its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ovsl.__main__ import main
from ovsl.callbacks import extremes
from ovsl.callbacks.extremes import image_score
from ovsl.errors import InputError
from ovsl.metrics.segmentation import confusion_table, count_pixels
from ovsl.results.confusion import Confusion, most_confused
from ovsl.results.drawing import Picture, Segments, draw_overlay, draw_sheet, reduced
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT

TRUTH = torch.tensor([[0, 0, 1], [1, 2, 255]])
FOUND = torch.tensor([[0, 1, 1], [1, 0, 0]])


def test_confusion_counts_each_pixel_once() -> None:
    table = confusion_table(FOUND, TRUTH, 4, 255)
    assert table.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # IoU of class 0 is 1/3, of class 1 2/3, of class 2 0; class 3 does not occur.
    assert float(image_score(*count_pixels(FOUND, TRUTH, 4, 255))) == pytest.approx(1 / 3)
    assert torch.isnan(image_score(*torch.zeros(3, 4, dtype=torch.int64)))


def test_confusion_reads_back_and_names_what_goes_wrong(tmp_path: Path) -> None:
    table = np.zeros((300, 300), dtype=np.int64)
    table[7, 7], table[7, 9], table[299, 7], table[5, 5] = 100, 5, 70_000, 9
    Confusion.of(table).write(tmp_path / "c.npz")
    back = Confusion.read(tmp_path / "c.npz")
    assert np.array_equal(back.dense(), table)
    assert most_confused(table, 10) == [7, 299, 9]
    assert most_confused(table, 1) == [7]
    (tmp_path / "cut.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:40])
    with pytest.raises(InputError, match="does not hold confusion of classes"):
        Confusion.read(tmp_path / "cut.npz")


def test_pictures_are_made_smaller_by_their_nearest_pixel() -> None:
    labels = np.arange(6).repeat(200)[None].repeat(40, 0)
    image = np.zeros((40, 1200, 3), dtype=np.uint8)
    picture = Picture("a", image, labels, labels, Segments(labels, np.zeros(5, dtype=np.int64)))
    small = reduced(picture, 60)
    assert small.image.shape == (2, 60, 3)
    assert small.truth is not None
    assert small.segments is not None
    for map in (small.prediction, small.truth, small.segments.ids):
        assert np.array_equal(map, np.arange(6).repeat(10)[None].repeat(2, 0))
    assert reduced(picture, 1200) is picture


def test_dollar_signs_in_names_are_no_formulas() -> None:
    words = Vocabulary.from_words(["$\\frac{$", "$5 bill$"])
    picture = Picture("$x_", np.zeros((8, 8, 3), dtype=np.uint8), np.eye(8, dtype=np.int64), note="$\\frac{$")
    assert draw_sheet([picture], words, "$\\nothing$").shape[2] == 3
    assert draw_overlay(picture, words, "$\\nothing$").shape[2] == 3


def test_a_test_draws_its_extremes(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scores, drawn = tmp_path / "run", [], []

    def score(*counts: torch.Tensor) -> torch.Tensor:
        scores.append(100 * float(image_score(*counts)))
        return image_score(*counts)

    def draw(pictures: list[Picture], *args: object) -> np.ndarray:
        drawn.append([picture.note.split()[-2] for picture in pictures])
        return draw_sheet(pictures, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(extremes, "image_score", score)
    monkeypatch.setattr(extremes, "draw_sheet", draw)
    files = ("methods/maskclip", "data/toy", "trainer/cpu")
    configs = [word for name in files for word in ("-c", str(ROOT / f"configs/{name}.yaml"))]
    command = ["test", *configs, "-c", str(small), "--run_dir", str(run), "--extremes.count", "2"]
    assert main(command) == 0
    ranked = [f"{value:.1f}" for value in sorted(scores)]
    assert drawn == [[ranked[-1], ranked[-2]], [ranked[0], ranked[1]]]
    assert {file.name for file in (run / "pictures").iterdir()} == {
        "test-toy.png", "test-toy-best.png", "test-toy-worst.png",
    }  # fmt: skip
    table = Confusion.read(run / "results/test-toy.confusion.npz").dense()
    assert table.shape == (40, 40)
    assert table.sum() == len(scores) * 128 * 128
