"""Names that are shown in place of a vocabulary's."""

from __future__ import annotations

import pytest

from ovsl.errors import InputError
from ovsl.vocabulary import ClassNames, Vocabulary, available_class_names

WORDS = {
    "ade20k_150": (150, 150, 150, 150),
    "cityscapes_19": (19, 19, 19, 19),
    "coco_object_81": (113, 81, 97, 96),
    "coco_stuff_171": (171, 171, 171, 171),
    "pascal_context_59": (59, 59, 59, 59),
    "pascal_context_60": (60, 60, 60, 60),
    "pascal_voc_20": (30, 20, 20, 20),
    "pascal_voc_21": (56, 21, 46, 46),
}
"""Words in all, as the publications count them: SCLIP, ClearCLIP, ProxyCLIP, CorrCLIP."""


@pytest.mark.parametrize("name", available_class_names())
def test_every_list_renames_classes_of_its_vocabularies(name: str) -> None:
    names = ClassNames(name)
    for vocabulary, shown in names.by_vocabulary.items():
        assert set(shown) <= set(Vocabulary.load(vocabulary).classes), vocabulary
        if name not in ("sclip", "clearclip", "proxyclip", "corrclip"):  # which are whole
            assert all(words != (own,) for own, words in shown.items())


@pytest.mark.parametrize("name", sorted(WORDS))
def test_the_training_free_lists_have_words_of_every_class(name: str) -> None:
    vocabulary = Vocabulary.load(name)
    for source, count in zip(("sclip", "clearclip", "proxyclip", "corrclip"), WORDS[name], strict=True):
        shown = ClassNames(source).of(vocabulary)
        assert tuple(shown) == vocabulary.classes
        assert sum(map(len, shown.values())) == count, source


@pytest.mark.parametrize(
    ("source", "vocabulary", "own", "shown"),
    [
        ("zegclip", "pascal_context_60", "diningtable", "table"),
        ("san", "pascal_voc_20", "tvmonitor", "tv"),
        ("denseclip", "ade20k_150", "road, route", "road"),
        ("lseg", "ade20k_150", "chest of drawers, chest, bureau, dresser", "chest"),
        ("lseg", "coco_object_81", "background", "others"),
        ("lseg", "fss_1000", "abe's flyingfish", "abe's_flyingfish"),
        ("cat_seg", "pascal_context_459", "air conditioner", "airconditioner"),
        ("clip_dinoiser", "ade20k_150", "road, route", "road"),
        ("clip_dinoiser", "pascal_voc_20", "diningtable", "dining table"),
        ("clip_diy", "pascal_voc_21", "tvmonitor", "tv/monitor"),
        ("corrclip", "pascal_voc_20", "person", "people"),
        ("sclip", "coco_stuff_171", "traffic light", "trafficlight"),
    ],
)
def test_published_names(source: str, vocabulary: str, own: str, shown: str) -> None:
    classes = Vocabulary.load(vocabulary)
    assert ClassNames(source).of(classes)[own] == (shown,)
    assert ClassNames(source).principal(classes)[classes.classes.index(own)] == shown


def test_a_background_may_be_many_words() -> None:
    vocabulary = Vocabulary.load("pascal_voc_21")
    background = ClassNames("sclip").of(vocabulary)["background"]
    assert len(background) == 26
    assert "background" not in background
    assert ClassNames("clearclip").of(vocabulary)["background"] == ("background",)
    assert len(ClassNames("cat_seg").of(vocabulary)["background"]) == 39


def test_names_follow_the_classes_of_a_part_and_leave_other_vocabularies_alone() -> None:
    part = Vocabulary.load("pascal_voc_20").subset([14, 3])
    assert ClassNames("proxyclip").of(part) == {"person": ("person",), "boat": ("ship",)}
    assert ClassNames("sclip").of(Vocabulary.from_words(["person", "car, automobile"])) == {}
    assert ClassNames("sclip").of(Vocabulary.from_words(["sky", "sea"], name="pascal_voc_20")) == {}


def test_names_may_be_written_out_for_any_vocabulary_or_for_one() -> None:
    words, voc = Vocabulary.from_words(["tv", "tvmonitor"]), Vocabulary.load("pascal_voc_20")
    anywhere = ClassNames({"tv": "television", "tvmonitor": ["screen", "monitor"]})
    assert anywhere.of(words) == {"tv": ("television",), "tvmonitor": ("screen", "monitor")}
    assert anywhere.of(voc) == {"tvmonitor": ("screen", "monitor")}
    assert anywhere.principal(words) == ("television", "screen")
    one = ClassNames({"pascal_voc_20": {"tvmonitor": "tv"}, "ade20k_150": "denseclip"})
    assert one.of(voc) == {"tvmonitor": ("tv",)}
    assert one.of(words) == {}
    assert one.of(Vocabulary.load("ade20k_150")) == ClassNames("denseclip").of(Vocabulary.load("ade20k_150"))
    assert ClassNames(None).of(voc) == {}


def test_a_list_is_known_as_it_was_once_called() -> None:
    ade = Vocabulary.load("ade20k_150")
    assert ClassNames("lseg_ade20k").of(ade) == ClassNames("lseg").of(ade)
    once = {"ade20k_150": "cat_seg_ade20k", "pascal_voc_21": "cat_seg_pascal_voc_21"}
    assert ClassNames(once).of(ade) == ClassNames("cat_seg").of(ade)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("densclip", r"There are no class names 'densclip': did you mean 'denseclip'\?"),
        ({"tv": ""}, "The class 'tv' cannot be shown as ''"),
        ({"tv": 3}, "The class 'tv' cannot be shown as 3"),
        ({"pascal_voc_20": {"tvmonitor": []}}, r"The class 'tvmonitor' cannot be shown as \[\]"),
    ],
)
def test_names_that_are_none(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassNames(given)  # type: ignore[arg-type]


def test_lists_of_names_are_no_vocabularies() -> None:
    assert not {"class_names", *available_class_names()} & set(Vocabulary.available())
