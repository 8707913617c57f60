"""The page in a real browser: what is dropped, typed, moved, shown and downloaded; and nothing leaves the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import ovsl
from ovsl.__main__ import main
from ovsl.results.drawing import borders
from ovsl.vocabulary import Vocabulary
from tests.browser import chromium, complaints, requested
from tests.conftest import ROOT, TINY_CLIP

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
HERE = ("127.0.0.1", "localhost", "::1")
def watch(event, args):
    where = args[1] if event == "socket.connect" else args if event == "socket.getaddrinfo" else None
    if isinstance(where, tuple) and where[0] not in HERE:
        print("left the machine:", where, file=sys.stderr, flush=True)
sys.addaudithook(watch)
from ovsl.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
WORDS = ["grass", "red circle", "blue star"]
EVIL = "<b id=evil>${1+1}{{value}}</b>"
PANOPTIC = ROOT / "tests/fixtures/runs_before/fc_clip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MaskCLIP, and a photo with EXIF rotation."""
    path = tmp_path_factory.mktemp("demo")
    settings = {"clip": {"model": "tiny", "config": TINY_CLIP}, "templates": "single"}
    model = {"class_path": "MaskCLIP", "init_args": settings}
    (path / "maskclip.yaml").write_text(yaml.safe_dump({"model": model, "seed_everything": 3}))
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    Image.fromarray(pixels).save(path / "photo.png", exif=exif)
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A page with two methods, one of them panoptic; it must not connect to any other machine."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    command = ["demo", "-c", str(folder / "maskclip.yaml"), "--compare", str(PANOPTIC), "--port", "0"]
    with (folder / "errors.txt").open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        )
        try:
            assert server.stdout is not None
            line = next((line for line in server.stdout if "The page is at" in line), None)
            assert line, (folder / "errors.txt").read_text()
            yield line.split()[4]
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert "left the machine" not in (folder / "errors.txt").read_text()


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.get(address)
        until(lambda: opened.find_elements("css selector", "#ovsl-ask"))
        yield opened
        assert requested(opened) == set()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def ask(browser: Any, words: str) -> None:
    """Type words and press the button."""
    browser.execute_script(
        "const box = document.querySelector('#ovsl-words textarea'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input', {bubbles: true}))",
        words,
    )
    browser.execute_script("document.querySelectorAll('.toast-body button').forEach((each) => each.click())")
    browser.find_element("css selector", "#ovsl-ask").click()


def choose(browser: Any, dropdown: str, option: str) -> None:
    """Take an option of a dropdown."""
    browser.find_element("css selector", f"{dropdown} input").click()
    (found,) = until(
        lambda: [each for each in browser.find_elements("css selector", "[role=option]") if each.text.endswith(option)]
    )
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))", found)


def legends(browser: Any) -> list[list[str]]:
    answers = browser.find_elements("css selector", ".ovsl-answer")
    rows = [answer.find_elements("css selector", ".ovsl-legend .word") for answer in answers]
    return [[row.get_attribute("title") for row in legend] for legend in rows]


def test_a_question_from_the_photo_to_the_files(browser: Any, folder: Path) -> None:
    browser.find_element("css selector", "#ovsl-photo input[type=file]").send_keys(str(folder / "photo.png"))
    until(lambda: browser.find_elements("css selector", "#ovsl-photo img"))
    ask(browser, "\n".join(WORDS))
    until(lambda: browser.find_elements("css selector", ".ovsl-answer"))

    segmenter = ovsl.load(folder / "maskclip.yaml", device="cpu").with_words(WORDS)
    found = segmenter(folder / "photo.png")
    assert found.labels.shape == (120, 80), "upright"
    shown = legends(browser)
    assert shown[0] == [word for word, share in found.shares().items() if share]
    assert len(shown) == 2, "two methods side by side"
    assert f"{100 * max(found.shares().values()):.1f} %" in browser.find_element("css selector", ".ovsl-legend").text

    links = {link.get_attribute("download"): link for link in browser.find_elements("css selector", "#ovsl-files a")}
    assert {name.rpartition(".")[2] for name in links} == {"json", "png"}
    assert len(links) == 5, "labels and JSON of two, and the panoptic map of one"
    fetch = "return fetch(arguments[0]).then((got) => got.arrayBuffer()).then((all) => Array.from(new Uint8Array(all)))"
    content = {name: bytes(browser.execute_script(fetch, link.get_attribute("href"))) for name, link in links.items()}
    (name,) = (name for name in content if "MaskCLIP" in name and name.endswith(".labels.png"))
    (folder / name).write_bytes(content[name])
    with Image.open(folder / name) as file:
        assert np.array_equal(np.asarray(file), found.labels)
    (name,) = (name for name in content if "MaskCLIP" in name and name.endswith(".json"))
    assert list(json.loads(content[name])["share"]) == WORDS
    assert complaints(browser) == []


def test_the_slider_fades_the_labels_and_the_view_shows_segments(browser: Any) -> None:
    layer = "return getComputedStyle(document.querySelector('.ovsl-answer .map.{}')).{}"
    assert browser.execute_script(layer.format("words", "opacity")) == "0.55"
    browser.execute_script(
        "const slider = document.querySelector('#ovsl-opacity input[type=range]'); slider.value = 0.2;"
        "slider.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    until(lambda: browser.execute_script(layer.format("words", "opacity")) == "0.2")
    assert browser.execute_script(layer.format("segments", "display")) == "none"
    browser.find_element("css selector", "#ovsl-view input[value=segments]").click()
    until(lambda: browser.execute_script(layer.format("segments", "display")) == "block")
    first, second = browser.find_elements("css selector", ".ovsl-answer")
    assert first.find_element("css selector", ".map.words").is_displayed(), "a method without segments keeps its words"
    assert not second.find_element("css selector", ".map.words").is_displayed()


def test_the_word_below_the_pointer_is_named_in_both(browser: Any, folder: Path) -> None:
    found = ovsl.load(folder / "maskclip.yaml", device="cpu").with_words(WORDS)(folder / "photo.png")
    assert not borders(found.labels)[60, 40]
    browser.execute_script(
        "const box = document.querySelector('.ovsl-layers').getBoundingClientRect();"
        "document.querySelector('.ovsl-layers').dispatchEvent(new MouseEvent('mousemove', {bubbles: true,"
        "clientX: box.left + box.width * 40.5 / 80, clientY: box.top + box.height * 60.5 / 120}))"
    )
    named = [each.get_attribute("textContent") for each in browser.find_elements("css selector", ".ovsl-here")]
    assert named[0] == found.vocabulary.classes[found.labels[60, 40]]
    assert len(named) == 2


def test_words_are_never_markup(browser: Any) -> None:
    choose(browser, "#ovsl-second", "nothing")
    ask(browser, f"road\n{EVIL}")
    until(lambda: EVIL in browser.find_element("css selector", "#ovsl-answer").text)
    assert len(legends(browser)) == 1, "nothing beside it"
    assert browser.find_elements("css selector", "#evil") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [("road\nroad", "occurs more than once"), (" ", "Type some words first"), (f"{EVIL}\n{EVIL}", EVIL)],
)
def test_a_mistake_is_one_sentence(words: str, message: str, browser: Any) -> None:
    ask(browser, words)
    until(lambda: message in " ".join(each.text for each in browser.find_elements("css selector", ".toast-body")))
    assert browser.find_elements("css selector", "#evil") == []


def test_a_sample_brings_its_photo_and_its_words(browser: Any) -> None:
    browser.find_elements("css selector", "#ovsl-samples button")[1].click()
    box = browser.find_element("css selector", "#ovsl-words textarea")
    until(lambda: "grass" in box.get_property("value"))
    assert set(box.get_property("value").splitlines()) <= set(Vocabulary.load("toy").classes)


def test_other_names_for_this_machine_are_refused(address: str) -> None:
    import urllib.error
    import urllib.request

    foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(foreign)
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "--compare" in capsys.readouterr().out
