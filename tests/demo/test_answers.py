"""What stands behind the page, without a browser and without Gradio."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ovsl
from ovsl.__main__ import main
from ovsl.api import PhotoSegmentation
from ovsl.demo import answers as answers_module
from ovsl.demo.answers import Answer, Answers, parse_words, toy_samples
from ovsl.demo.server import listen
from ovsl.demo.view import LEGEND_ROWS, answers_html
from ovsl.errors import InputError
from ovsl.inference import PanopticMap
from ovsl.tools.demo import by_title
from ovsl.vocabulary import Vocabulary
from tests.conftest import TINY_CLIP

EVIL = '<img src=x onerror="alert(1)">'


@pytest.mark.parametrize(
    ("typed", "classes"),
    [
        ("road\n\n sky \ncar, automobile\n", ("road", "sky", "car")),
        ("road, sky, car", ("road", "sky", "car")),
        ("road", ("road",)),
        ("camvid_11", Vocabulary.load("camvid_11").classes),
    ],
)
def test_words_as_people_type_them(typed: str, classes: tuple[str, ...]) -> None:
    assert parse_words(typed).classes == classes


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (" \n ", "Type some words first"),
        ("\n".join(f"word {index}" for index in range(6000)), "6000 words, and the page takes 5000"),
        ("cat\nCat", "'cat' occurs more than once"),
    ],
)
def test_words_that_cannot_be_used(typed: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_words(typed)


def answer(words: list[str], labels: np.ndarray, panoptic: PanopticMap | None = None) -> Answer:
    photo = np.full((*labels.shape, 3), 90, dtype=np.uint8)
    return Answer("Method " + words[0], PhotoSegmentation(photo, labels, Vocabulary.from_words(words), panoptic), 0.5)


class Reader(HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_legend_has_the_largest_share_first_and_names_what_is_absent() -> None:
    labels = np.zeros((10, 10), dtype=np.int64)
    labels[:7] = 2
    words = Reader(answers_html([answer(["sky", "dog", "road"], labels)])).words
    assert [word for word in words if word in ("sky", "dog", "road") or word.endswith("%")] == [
        "road", "70.0 %", "sky", "30.0 %",
    ]  # fmt: skip
    assert "Not found: dog." in words


def test_a_legend_of_thousands_of_words_stays_short() -> None:
    words = [f"word {index}" for index in range(3000)]
    page = answers_html([answer(words, np.arange(60 * 40).reshape(60, 40))])
    reader = Reader(page)
    assert sum(tag == "li" for tag, _ in reader.tags) == LEGEND_ROWS
    assert f"{2400 - LEGEND_ROWS} more words on 98.8 % of the photo." in reader.words
    assert any(word.startswith("Not found: word 2400,") and word.endswith("and 560 more.") for word in reader.words)


def test_words_are_text_and_never_markup() -> None:
    reader = Reader(answers_html([answer([EVIL, "dog"], np.eye(8, dtype=np.int64))]))
    sources = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert [source[:11] for source in sources] == ["data:image/"] * 2
    assert not any("onerror" in attributes for _, attributes in reader.tags)
    assert reader.words.count(EVIL) == 1
    assert f"Method {EVIL}" in reader.words


def test_segments_are_a_layer_of_their_own_and_counted() -> None:
    labels = np.zeros((6, 6), dtype=np.int64)
    ids = torch.zeros(6, 6, dtype=torch.int64)
    ids[:2], ids[4:] = 1, 2
    reader = Reader(answers_html([answer(["dog", "sky"], labels, PanopticMap(ids, torch.tensor([0, 0])))]))
    assert [attributes["class"] for tag, attributes in reader.tags if tag == "img"] == [
        "photo", "map words", "map segments",
    ]  # fmt: skip
    assert "2 segments" in reader.words


def test_large_photos_are_shown_smaller() -> None:
    page = answers_html([answer(["dog", "sky"], np.eye(3000, dtype=np.int64))])
    assert "3000 x 3000 pixels" in page
    assert len(page) < 500_000


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> ovsl.api.LoadedMethod:
    path = tmp_path_factory.mktemp("demo") / "maskclip.yaml"
    settings = {"clip": {"model": "tiny", "config": TINY_CLIP}, "templates": "single"}
    path.write_text(yaml.safe_dump({"model": {"class_path": "MaskCLIP", "init_args": settings}, "seed_everything": 3}))
    return ovsl.load(path, device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "holiday 1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_files_hold_what_is_shown_and_old_ones_go(
    method: ovsl.api.LoadedMethod, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "KEPT_ANSWERS", 2)
    asked = Answers({"Mask/CLIP": method}, tmp_path)
    found, files = asked.ask(photo, "road\nsky", "Mask/CLIP", "nothing", "Mask/CLIP")
    assert [file.name for file in files] == ["holiday-1-Mask-CLIP.json", "holiday-1-Mask-CLIP.labels.png"]
    assert len(found) == 1, "a method beside itself, and nobody, do not count"
    assert json.loads(files[0].read_text())["share"].keys() == {"road", "sky"}
    with Image.open(files[1]) as file:
        assert np.array_equal(np.asarray(file), found[0].found.labels)
    for _ in range(2):
        _, last = asked.ask(photo, "road\nsky", "Mask/CLIP")
    assert not files[0].exists()
    assert last[0].exists()


def test_no_photo_is_one_sentence(method: ovsl.api.LoadedMethod, tmp_path: Path) -> None:
    asked = Answers({"MaskCLIP": method}, tmp_path)
    (tmp_path / "photo.jpg").write_text("no photo")
    for photo, message in ((None, "Drop a photo first"), (str(tmp_path / "photo.jpg"), "photo.jpg")):
        with pytest.raises(InputError, match=message):
            asked.ask(photo, "road\nsky", "MaskCLIP")


def test_samples_come_with_their_words(tmp_path: Path) -> None:
    samples = toy_samples(tmp_path, 2)
    for path, words in samples:
        assert Image.open(path).size == (128, 128)
        assert set(parse_words(words).classes) <= set(Vocabulary.load("toy").classes)


def test_methods_of_one_title_are_told_apart(method: ovsl.api.LoadedMethod) -> None:
    title = method.module.title
    assert list(by_title([("runs/a", method), ("runs/b", method)])) == [f"{title}, runs/a", f"{title}, runs/b"]
    assert list(by_title([("runs/a", method)])) == [title]


def test_without_gradio_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "The page needs Gradio: pip install 'ovsl[demo]'." in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert f"Cannot serve at 127.0.0.1:{port} (Address already in use)" in capsys.readouterr().err
    with pytest.raises(InputError, match="give another --port or --host"):
        listen("no.such.host.invalid", 0)
