"""The page of results: one file, safe whatever the names are."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ovsl.__main__ import main
from ovsl.results import ClassResult, EvaluationResult
from ovsl.results.page import results_page

EVIL = '<script>alert("x")</script>'


def result(name: str = "cat", dataset: str = "toy") -> EvaluationResult:
    classes = (ClassResult(name, True, 0.25, 0.5, 10), ClassResult("dog", False, None, None, 0))
    metrics = {"pAcc": 0.5, "mIoU": 0.25, "hIoU": None}
    return EvaluationResult("run", "MaskCLIP", "test", dataset, 7, 0, "skip", metrics, classes)


class Reader(HTMLParser):
    """Collects tags, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_figures_and_classes_are_on_the_page() -> None:
    reader = read(results_page([result()], {}))
    assert {"MaskCLIP", "toy", "50.0", "25.0", "cat", "dog"} <= set(reader.words)
    assert reader.links == []


def test_names_are_text_and_never_markup() -> None:
    reader = read(results_page([result(EVIL, EVIL)], {EVIL: b"png"}, EVIL))
    assert "script" not in reader.tags
    assert reader.words.count(EVIL) >= 3


def test_report_writes_one_page_that_needs_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    result().write(run / "results/test-toy.json")
    (run / "pictures").mkdir()
    Image.new("RGB", (4, 4), "red").save(run / "pictures/test-toy.png")
    assert main(["report", str(run), "--html", str(tmp_path / "page")]) == 0
    assert f"page written to {tmp_path / 'page/index.html'}" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "page").iterdir()] == ["index.html"]
    reader = read((tmp_path / "page/index.html").read_text(encoding="utf-8"))
    assert [link[:22] for link in reader.links] == ["data:image/png;base64,"]
