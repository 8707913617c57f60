"""Words of one's own wherever a vocabulary is named: lists, text, CSV and JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovsl.data import EvaluationSet, PredictionData, SegmentationDataModule, ToySource
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary, as_vocabulary, generate_palette, vocabulary_name

CSV = """name,synonyms,is_thing,color,seen
road,,false,#808080,true
car,"automobile, van",true,#ff0000,true
fire truck,,yes,#00FF00,no
"""
JSON = {
    "classes": [
        {"name": "road", "is_thing": False, "color": [128, 128, 128]},
        {"name": "car", "synonyms": ["automobile", "van"], "is_thing": True, "color": "#ff0000"},
        {"name": "fire truck", "is_thing": True, "color": [0, 255, 0]},
    ],
    "splits": {"few": {"unseen": ["fire truck"]}, "numbers": {"unseen": [0]}},
}


@pytest.fixture
def csv_file(tmp_path: Path) -> str:
    (tmp_path / "street.csv").write_text(CSV)
    return str(tmp_path / "street.csv")


@pytest.fixture
def json_file(tmp_path: Path) -> str:
    (tmp_path / "street.json").write_text(json.dumps(JSON))
    return str(tmp_path / "street.json")


def test_csv_and_json_say_the_same(csv_file: str, json_file: str) -> None:
    vocabulary = as_vocabulary(csv_file)
    assert vocabulary.name == "street"
    assert vocabulary.classes == ("road", "car", "fire truck")
    assert vocabulary.synonyms == (("road",), ("car", "automobile", "van"), ("fire truck",))
    assert vocabulary.things == (False, True, True)
    assert vocabulary.palette == ((128, 128, 128), (255, 0, 0), (0, 255, 0))
    assert vocabulary.seen == (True, True, False)
    assert as_vocabulary(json_file, "few") == vocabulary
    assert as_vocabulary(json_file).seen is None
    assert as_vocabulary(json_file, "numbers").seen == (False, True, True)


def test_text_file_and_list_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff# streets\nroad\n\n car, automobile \n", encoding="utf-8")
    words = as_vocabulary(["road", "car, automobile"])
    assert as_vocabulary(str(file)).synonyms == words.synonyms == (("road",), ("car", "automobile"))
    assert (vocabulary_name(str(file)), vocabulary_name(["a"]), vocabulary_name("toy")) == ("mine", "words", "toy")


def test_shipped_names_and_vocabularies_stay_what_they_are() -> None:
    toy = Vocabulary.load("toy", "zero_shot")
    assert as_vocabulary("toy", "zero_shot") == toy
    assert as_vocabulary(toy) is toy


def test_a_copy_of_a_shipped_file_is_read(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "ovsl/vocabulary/data/pascal_voc_20.json"
    file = tmp_path / "voc.json"
    file.write_bytes(shipped.read_bytes())
    copy, original = as_vocabulary(str(file), "zero_shot_15_5"), Vocabulary.load("pascal_voc_20", "zero_shot_15_5")
    assert (copy.classes, copy.seen, copy.palette) == (original.classes, original.seen, original.palette)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "nam\nroad\n", "did you mean 'name'"),
        ("a.csv", "name\ncar, automobile\n", "put synonyms in quotes"),
        ("a.csv", "name,is_thing\ncar,maybe\n", "'maybe' is neither true nor false"),
        ("a.csv", "name,is_thing\ncar,true\nroad,\n", "'road' has no 'is_thing'"),
        ("a.csv", "name,color\ncar,red\n", "no colour"),
        ("a.csv", "name\ncar\ncar\n", "more than once"),
        ("a.json", "{", "not JSON"),
        ("a.json", "{}", "lists no classes"),
        ("a.json", '[{"name": "car", "synonym": ["van"]}]', "did you mean 'synonyms'"),
        ("a.json", '[{"name": "car", "synonyms": "van"}]', "list of words"),
        ("a.json", "[]", "at least one"),
        ("a.txt", "# nothing\n", "at least one"),
        ("a.txt", None, "No such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        as_vocabulary(str(file))
    assert str(file) in str(raised.value)


def test_unknown_names_and_splits_say_what_can_be_given(json_file: str) -> None:
    with pytest.raises(InputError, match=r"'camvid_11'.*list of words or a .csv"):
        as_vocabulary("camvid_12")
    with pytest.raises(InputError, match=r'write words as a list, \'\["road", "sky"\]\''):
        as_vocabulary("road,sky")
    with pytest.raises(InputError, match="no split 'fold': it has few, numbers"):
        as_vocabulary(json_file, "fold")
    with pytest.raises(InputError, match="has no split"):
        as_vocabulary(["road"], "few")


def test_every_place_that_takes_a_name_takes_words_and_files(json_file: str) -> None:
    data = SegmentationDataModule(
        vocabulary=json_file,
        split="few",
        evaluation={"mine": EvaluationSet(vocabulary=["road", "car"], test=ToySource(0, 1, 32))},
    )
    assert data.training_vocabulary == as_vocabulary(json_file, "few")
    assert data.evaluation_vocabularies["mine"].classes == ("road", "car")
    assert PredictionData("photo.jpg", json_file).prediction_vocabulary.classes == ("road", "car", "fire truck")


def test_vocabularies_may_have_thousands_of_words() -> None:
    palette = generate_palette(10_000)
    assert len(palette) == 10_000
    assert palette[:30] == generate_palette(30)
