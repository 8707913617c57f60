"""Two runs on the same images: the difference and its interval; other images are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovsl.__main__ import main
from ovsl.detections import TRUTHS, Detections
from ovsl.results import ClassResult, EvaluationResult
from ovsl.results.comparison import compare
from ovsl.results.image_counts import ImageCounts
from ovsl.scores import PIXELS, semantic_scores

SEEN = (True, True, False)
IDS = [f"photo-{index}" for index in range(30)]


def a_run(run: str, folder: Path, found: float, ids: list[str] = IDS, seen: tuple[bool, ...] = SEEN) -> Path:
    """A run that finds a share of the pixels of every class; some images are harder than others."""
    generator = np.random.default_rng(0)
    target = generator.integers(50, 200, (len(ids), 3))
    hard = generator.uniform(0, 0.4, (len(ids), 1))
    tables = np.stack([(target * (found - hard)).astype(np.int64), target, target], axis=1)
    counts = ImageCounts.of(ids, tables, PIXELS)
    sums = {name: counts.dense(name).sum(0) for name in PIXELS}
    scores = semantic_scores(sums, seen)
    result = EvaluationResult(
        run=run,
        method="PatchText",
        stage="test",
        dataset="streets",
        images=len(ids),
        step=4,
        absent_classes="skip",
        metrics={name: float(value) for name, value in scores.items() if name != "iou"} | {"AP": found},
        per_class=tuple(ClassResult(f"class {i}", mark, 0.5, 0.5, 9) for i, mark in enumerate(seen)),
        image_counts=counts,
    )
    result.write(folder / run / "results/test-streets.json")
    return folder / run


def cells(text: str) -> dict[str, list[str]]:
    rows = [line.split(",") for line in text.splitlines()]
    return {row[1]: row for row in rows}


def test_a_difference_stands_with_its_paired_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = a_run("one", tmp_path, 0.6), a_run("two", tmp_path, 0.65)
    assert main(["report", "--compare", str(one), str(two), "--format", "csv"]) == 0
    table = cells(capsys.readouterr().out)
    assert table["figure"] == ["dataset", "figure", "images", "one", "two", "difference", "low", "high"]
    assert set(table) == {"figure", "pAcc", "mIoU", "mIoU seen", "mIoU unseen", "hIoU", "AP"}
    _, _, images, before, after, difference, low, high = table["pAcc"]
    assert (images, float(after) - float(before)) == ("30", pytest.approx(float(difference), abs=0.11))
    assert 4.5 < float(low) <= float(difference) <= float(high) < 5.5, "five points, though images vary by forty"
    assert table["AP"][5:] == ["+5.0", "-", "-"], "these runs have kept no detections"
    assert main(["report", "--compare", str(two), str(one)]) == 0
    assert "lower" in capsys.readouterr().out


def with_detections(run: Path, share: float, rules: str = "coco") -> Path:
    """A run that finds a share of three things in each image, among as many inventions."""
    path = run / "results/test-streets.images.npz"
    counts, draw = ImageCounts.read(path), np.random.default_rng(1)
    number = len(counts)
    image, label = np.repeat(np.arange(number), 6), np.tile([0, 1, 2], 2 * number)
    codes = np.zeros((6 * number, len(TRUTHS), 10), np.uint8)
    codes[np.tile([True] * 3 + [False] * 3, number) & (draw.random(6 * number) < share)] = 1
    found = Detections(image, label, draw.random(6 * number).astype(np.float32), codes, rules)
    truths = {name: np.ones_like(counts.label) for name in TRUTHS}
    replace(counts, columns=counts.columns | truths, detections=found).write(path)
    return run


def test_mask_precision_is_compared_on_the_same_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (with_detections(a_run(name, tmp_path, 0.6), share) for name, share in (("one", 0.5), ("two", 0.8)))
    read = ImageCounts.read(one / "results/test-streets.images.npz").detections
    assert read is not None
    assert (read.rules, read.codes.dtype, read.score.dtype) == ("coco", np.uint8, np.float32)
    assert main(["report", "--compare", str(one), str(two), "--format", "csv"]) == 0
    *_, low, high = cells(capsys.readouterr().out)["AP"]
    assert 0 < float(low) < float(high) < 40
    with_detections(two, 0.8, "cityscapes")
    assert main(["report", "--compare", str(one), str(two)]) == 2
    assert "mask AP follows other rules" in capsys.readouterr().err


def test_a_run_beside_itself_is_not_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run("one", tmp_path, 0.6)
    assert main(["report", "--compare", str(one), str(one)]) == 0
    text = capsys.readouterr().out
    assert text.count("[+0.0, +0.0]") == 5
    assert text.count("not told apart") == 5


def test_runs_that_disagree_on_seen_classes_are_compared_without_them(tmp_path: Path) -> None:
    one, two = a_run("one", tmp_path, 0.6), a_run("two", tmp_path, 0.65, seen=(True, False, False))
    results = [EvaluationResult.from_json((run / "results/test-streets.json").read_text()) for run in (one, two)]
    counts = [ImageCounts.read(run / "results/test-streets.images.npz") for run in (one, two)]
    found = compare(*(replace(result, image_counts=own) for result, own in zip(results, counts, strict=True)))
    assert {"mIoU", "pAcc"} <= found.intervals.keys()
    assert not {"mIoU_seen", "mIoU_unseen", "hIoU"} & found.intervals.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [*IDS[:-1], "other"]}, "their images differ (30 and 30, 'other' is in one only)"),
        ({"ids": IDS[:-1]}, "their images differ (30 and 29, 'photo-29' is in one only)"),
    ],
)
def test_other_images_are_refused(
    change: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = a_run("one", tmp_path, 0.6), a_run("two", tmp_path, 0.6, **change)
    assert main(["report", "--compare", str(one), str(two)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_other_labels_of_the_same_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = a_run("one", tmp_path, 0.6), a_run("two", tmp_path, 0.6)
    path = two / "results/test-streets.images.npz"
    counts = ImageCounts.read(path)
    replace(counts, columns=counts.columns | {"target_area": counts.columns["target_area"] + 1}).write(path)
    assert main(["report", "--compare", str(one), str(two)]) == 2
    assert "the ground truth of the same images differs" in capsys.readouterr().err


def test_a_run_without_counts_names_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = a_run("one", tmp_path, 0.6), a_run("two", tmp_path, 0.6)
    (two / "results/test-streets.images.npz").unlink()
    assert main(["report", "--compare", str(one), str(two)]) == 2
    assert "holds no counts per image: make them with `ovsl test`" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "Of which runs?" in capsys.readouterr().err
