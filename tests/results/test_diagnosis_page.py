"""`ovsl report --diagnosis`: a page and JSON from what a test has counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovsl.__main__ import main
from ovsl.results import ClassResult, EvaluationResult
from ovsl.results.confusion import Confusion
from ovsl.results.diagnosis_counts import DiagnosisCounts
from ovsl.scores import BINS

NAMES = ("road", "street", "<b>kite</b>")


CONFUSION = np.array([[80, 20, 0], [0, 50, 0], [10, 0, 20]])
"""A third of the kite is called road, a fifth of the road street."""


def counts(margins: bool = True, masks: bool = False) -> DiagnosisCounts:
    table = np.stack([CONFUSION.diagonal(), CONFUSION.sum(0), CONFUSION.sum(1)])
    perfect = np.stack([CONFUSION.sum(1)] * 3)
    cells = np.zeros((2, 3, BINS), np.int64)
    cells[:, 0, 210], cells[:, 1, 210], cells[:, 2, 190] = (90, 80), (70, 50), (20, 20)
    cells[:, 2, 210] = (160, 10)
    similarity = np.array([[1, 0.8, -0.5], [0.8, 1, -0.6], [-0.5, -0.6, 1]], np.float16)
    return DiagnosisCounts(table // 2, perfect, table if masks else None, cells if margins else None, similarity)


def a_run(folder: Path, run: str, diagnosis: DiagnosisCounts | None, known: bool = True) -> Path:
    marks = (True, True, False) if known else (None, None, None)
    per_class = tuple(ClassResult(name, mark, 0.5, 0.5, 9) for name, mark in zip(NAMES, marks, strict=True))
    result = EvaluationResult(run, "PatchText", "test", "toy", 4, 0, "skip", {"mIoU": 0.6}, per_class)
    confusion = None if diagnosis is None else Confusion.of(CONFUSION)
    replace(result, confusion=confusion, diagnosis=diagnosis).write(folder / run / "results/test-toy.json")
    return folder / run


def test_a_page_and_json_tell_where_errors_come_from(tmp_path: Path) -> None:
    runs = [str(a_run(tmp_path, name, counts())) for name in ("one", "two")]
    assert main(["report", "--diagnosis", *runs, "--html", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("data:image/png;base64,") == 3, "a curve of each, and both beside each other"
    assert "<b>kite" not in page
    assert "&lt;b&gt;kite&lt;/b&gt;" in page
    assert "<script" not in page
    first, second = json.loads((tmp_path / "page/diagnosis.json").read_text())
    assert (first["run"], second["run"]) == ("one", "two")
    assert first["scores"]["true_masks"]["mIoU"] == 1.0
    assert first["true_masks_named_by"] == "mean scores"
    for name in ("area_hIoU", "area_seen_unseen"):
        assert page.count(f">{100 * first['offsets'][name]:.1f}<") >= 2
    assert first["offsets"]["area_hIoU"] != first["offsets"]["area_seen_unseen"]
    assert first["stolen"]["pairs"][0] == {
        "truth": "<b>kite</b>", "prediction": "road", "pixels": 10, "share": pytest.approx(1 / 3)
    }  # fmt: skip
    assert first["near_names"]["between_near_names"] == pytest.approx(20 / 30)
    cells = re.findall(r"<td class=\"n\">([^<]*)</td>", page)
    assert "33.3" in cells


def test_a_page_says_which_oracles_a_mask_method_was_given(tmp_path: Path) -> None:
    run = a_run(tmp_path, "one", counts(masks=True))
    assert main(["report", "--diagnosis", str(run)]) == 0
    page = (run / "diagnosis/index.html").read_text()
    assert "that the query says whose mask overlaps each most" in page
    assert "predicted masks, true classes" in page
    assert json.loads((run / "diagnosis/diagnosis.json").read_text())[0]["true_masks_named_by"] == "matched queries"


def test_another_threshold_needs_no_second_test(tmp_path: Path) -> None:
    run = a_run(tmp_path, "one", counts())
    assert main(["report", "--diagnosis", str(run), "--similarity", "0.9"]) == 0
    (told,) = json.loads((run / "diagnosis/diagnosis.json").read_text())
    assert told["near_names"]["between_near_names"] == 0.0
    assert told["near_names"]["threshold"] == 0.9


def test_without_unseen_classes_there_is_no_offset(tmp_path: Path) -> None:
    run = a_run(tmp_path, "one", counts(margins=False), known=False)
    assert main(["report", "--diagnosis", str(run)]) == 0
    (told,) = json.loads((run / "diagnosis/diagnosis.json").read_text())
    assert "offsets" not in told
    assert "stolen" not in told
    assert told["scores"]["measured"]["mIoU_unseen"] is None


def test_a_run_without_a_diagnosis_names_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, "one", None)
    assert main(["report", "--diagnosis", str(run)]) == 2
    assert "holds no diagnosis: make it with `ovsl test --diagnosis true`" in capsys.readouterr().err
