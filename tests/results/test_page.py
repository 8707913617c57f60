"""The page of results: one file, safe whatever the names are."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsl.__main__ import main
from ovsl.results import ClassResult, EvaluationResult
from ovsl.results.confusion import Confusion, confusion_file
from ovsl.results.curves import curves_html, nice_ticks, thin, training_curves
from ovsl.results.page import Detail, results_page
from ovsl.results.tables import INTERVAL_NOTE
from tests.browser import chromium, complaints, requested

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
    reader = read(results_page([result()], [Detail(result())]))
    assert {"MaskCLIP", "toy", "50.0", "25.0", "cat", "No ground truth: dog."} <= set(reader.words)
    assert reader.links == []


def test_intervals_stand_beside_their_figures_and_are_explained() -> None:
    with_one = replace(result(), intervals={"mIoU": (0.2, 0.312)})
    page = results_page([with_one, result(dataset="voc")])
    assert '<td class="n">25.0 <small>[20.0, 31.2]</small></td>' in page
    assert '<td class="n">50.0</td>' in page, "of pAcc there is none"
    assert page.count(INTERVAL_NOTE) == 1
    assert INTERVAL_NOTE not in results_page([result()])


def test_names_are_text_and_never_markup() -> None:
    evil = result(EVIL, EVIL)
    confusion = Confusion.of(np.array([[1, 2], [3, 4]]))
    curves = curves_html({"train/loss": {EVIL: [(0, 1.0), (2, 0.5)]}, f"val/{EVIL}/mIoU": {EVIL: [(2, 9.0)]}})
    page = results_page([evil], [Detail(evil, confusion, {EVIL: b"png"})] * 2, curves, EVIL)
    reader = read(page)
    assert "script" not in reader.tags
    assert reader.words.count(EVIL) >= 12


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


def test_curves_come_from_the_event_files_of_all_starts(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for start in (0, 10):  # a resumed run
        with SummaryWriter(str(tmp_path / "run")) as writer:
            for step in range(start, start + 10):
                writer.add_scalar("train/loss", float("nan") if step == 3 else 20.0 - step, step)
                writer.add_scalar("train/learning_rate", 0.1, step)
            writer.add_scalar("val/toy/mIoU", start / 100, start)
    (tmp_path / "other").mkdir()
    curves = training_curves([tmp_path / "run", tmp_path / "other"])
    assert list(curves) == ["train/loss", "val/toy/mIoU"]
    assert curves["train/loss"]["run"] == [(step, 20.0 - step) for step in range(20) if step != 3]
    assert curves["val/toy/mIoU"]["run"] == [(0, 0), (10, pytest.approx(10))]
    drawn = curves_html(curves)
    assert drawn.count("<svg") == 2
    assert "(%)" in drawn


def test_long_curves_are_averaged() -> None:
    thinned = thin([(x, x % 2) for x in range(10_000)])
    assert len(thinned) <= 150
    assert all(value == pytest.approx(0.5, abs=0.05) for _, value in thinned)


@pytest.mark.parametrize(("low", "high"), [(0.13, 2.9), (5.0, 5.0), (0.0, 0.0), (-3e-5, 2e-4), (12.0, 98.7)])
def test_ticks_are_round_and_enclose_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 7


def test_confused_classes_are_shares_of_the_true_class() -> None:
    words = read(results_page([], [Detail(result(), Confusion.of(np.array([[30, 10], [0, 20]])))])).words
    start = words.index("others") + 1
    assert [word for word in words[start:] if word] == ["cat", "75", "25", "dog", "100"]


@pytest.fixture
def report_page(tmp_path: Path) -> Path:
    """A report of two results with everything beside them, and hostile names."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        run = tmp_path / name
        evil = result(EVIL)
        evil.write(run / "results/test-toy.json")
        Confusion.of(rng.integers(0, 9, (2, 2))).write(confusion_file(run / "results/test-toy.json"))
        (run / "pictures").mkdir()
        for ending in ("", "-best", "-worst"):
            pixels = rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(run / f"pictures/test-toy{ending}.png")
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page")]) == 0
    return tmp_path / "page/index.html"


def test_the_page_shows_in_a_browser(report_page: Path, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.get(report_page.as_uri())
        width = "return arguments[0].complete && arguments[0].naturalWidth"
        shown = [browser.execute_script(width, each) for each in browser.find_elements("css selector", "img")]
        assert shown == [90] * 6
        titles = [each.text for each in browser.find_elements("css selector", "h3")]
        assert titles == ["Confused classes", "Best images", "Worst images", "First images"] * 2
        assert EVIL in browser.find_element("css selector", ".confusion").text
        assert browser.execute_script("return getComputedStyle(document.body).maxWidth") != "none", "the style counts"
        assert browser.execute_script("return document.scripts.length") == 0
        assert complaints(browser) == []
        assert requested(browser) == set()
