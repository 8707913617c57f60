"""Words that publications prompt with."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from ovsl.vocabulary import Vocabulary
from ovsl.vocabulary.query_words import with_query_words

LISTED = sorted(
    entry.name.removesuffix(".json")
    for entry in resources.files("ovsl.vocabulary").joinpath("data", "query_words").iterdir()
)

# Words in all, as the publications count them: SCLIP, ClearCLIP, ProxyCLIP, CorrCLIP.
COUNTS = {
    "ade20k_150": (150, 150, 150, 150),
    "cityscapes_19": (19, 19, 19, 19),
    "coco_object_81": (113, 81, 97, 96),
    "coco_stuff_171": (171, 171, 171, 171),
    "pascal_context_59": (59, 59, 59, 59),
    "pascal_context_60": (60, 60, 60, 60),
    "pascal_voc_20": (30, 20, 20, 20),
    "pascal_voc_21": (56, 21, 46, 46),
}


def test_the_eight_sets_have_lists() -> None:
    assert sorted(COUNTS) == LISTED
    assert not {f"{name}.json" for name in LISTED} & {"templates.json"}
    assert "query_words" not in Vocabulary.available()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_class_has_words_of_every_source(name: str) -> None:
    vocabulary = Vocabulary.load(name)
    for source, count in zip(("sclip", "clearclip", "proxyclip", "corrclip"), COUNTS[name], strict=True):
        found = with_query_words(vocabulary, source)
        assert found.classes == vocabulary.classes
        assert found.palette == vocabulary.palette
        assert sum(map(len, found.synonyms)) == count, source
    file = resources.files("ovsl.vocabulary").joinpath("data", "query_words", f"{name}.json")
    assert json.loads(file.read_text())["dataset"] == name


def test_background_and_people() -> None:
    voc = Vocabulary.load("pascal_voc_21")
    background = with_query_words(voc, "sclip").synonyms[0]
    assert len(background) == 26
    assert "background" not in background
    assert with_query_words(voc, "clearclip").synonyms[0] == ("background",)
    assert with_query_words(voc, "corrclip").synonyms[voc.index("person")] == ("people",)
    assert with_query_words(Vocabulary.load("coco_stuff_171"), "sclip").synonyms[9] == ("trafficlight",)


def test_words_follow_the_classes_of_a_subset() -> None:
    subset = Vocabulary.load("pascal_voc_20").subset([14, 3])
    assert with_query_words(subset, "proxyclip").synonyms == (("person",), ("ship",))


def test_other_vocabularies_keep_their_words() -> None:
    words = Vocabulary.from_words(["sky", "car, automobile"])
    assert with_query_words(words, "sclip") is words
    renamed = Vocabulary.from_words(["sky", "sea"], name="pascal_voc_20")
    assert with_query_words(renamed, "sclip") is renamed
