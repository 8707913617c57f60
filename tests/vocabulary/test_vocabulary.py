import json
import subprocess
import sys
from importlib import resources

import pytest

from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary, generate_palette

RELEASED = [name for name in Vocabulary.available() if name != "toy"]


def _recorded(name):
    return json.loads(resources.files("ovsl.vocabulary").joinpath("data", f"{name}.json").read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_released_lists_load_in_label_order(name):
    vocabulary, recorded = Vocabulary.load(name), _recorded(name)
    assert len(vocabulary) == recorded["num_classes"]
    assert [entry["index"] for entry in recorded["classes"]] == list(range(len(vocabulary)))
    assert list(vocabulary.classes) == [entry["name"].strip() for entry in recorded["classes"]]
    assert vocabulary.seen is None
    assert vocabulary.ignore_index == (65535 if len(vocabulary) > 254 else 255)


@pytest.mark.parametrize(
    ("name", "overlapping"),
    [
        ("ade20k_150", 64),
        ("ade20k_847", 101),
        ("pascal_context_59", 51),
        ("pascal_context_459", 85),
        ("pascal_voc_20", 20),
        ("pascal_voc_21", 21),
        ("cityscapes_19", 17),
        ("mapillary_vistas_65", 26),
        ("coco_stuff_171", 135),
    ],
)
def test_overlap_with_coco_panoptic_is_the_published_one(name, overlapping):
    vocabulary = Vocabulary.load(name).with_seen_from(Vocabulary.load("coco_panoptic_133"))
    assert sum(vocabulary.seen) == overlapping
    assert list(vocabulary.seen) == [bool(value) for value in _recorded(name)["overlaps_coco_panoptic"]]


def test_overlap_ignores_case_and_spacing_and_counts_only_seen_classes():
    training = Vocabulary.from_words(["Traffic  light", "dog, puppy"])
    training = Vocabulary.from_dict(training.to_dict() | {"seen": [True, False]})
    words = Vocabulary.from_words(["lamp, traffic LIGHT", "puppy", "sky"])
    assert words.with_seen_from(training).seen == (True, False, False)
    assert words.with_seen_from(Vocabulary.from_words(["puppy"])).seen == (False, True, False)


@pytest.mark.parametrize(
    ("training", "name", "more"),
    [
        ("coco_panoptic_133", "ade20k_150", ["house"]),
        ("coco_panoptic_133", "pascal_context_59", ["road"]),
        ("coco_stuff_171", "pascal_context_59", ["light", "road", "wood"]),
        ("coco_stuff_171", "ade20k_150", ["house", "light"]),
        ("coco_panoptic_133", "cityscapes_19", []),
    ],
)
def test_a_class_whose_own_name_was_trained_is_seen_where_its_synonyms_are_not(training, name, more):
    words, trained = Vocabulary.load(name), Vocabulary.load(training)
    published, reported = words.with_seen_from(trained), words.with_seen_from(trained, own_names=True)
    differing = [words.classes[i] for i in range(len(words)) if published.seen[i] != reported.seen[i]]
    assert differing == more
    assert set(published.seen_indices) < set(reported.seen_indices) or not more


def test_zero_shot_splits():
    stuff = Vocabulary.load("coco_stuff_171", split="zero_shot_156_15")
    unseen = "cow giraffe suitcase frisbee skateboard carrot scissors cardboard clouds grass playingfield river road"
    assert [stuff.classes[index] for index in stuff.unseen_indices] == [*unseen.split(), "tree", "wall-concrete"]
    assert len(stuff.seen_indices) == 156
    for name, split, unseen_indices in [
        ("pascal_voc_20", "zero_shot_15_5", [15, 16, 17, 18, 19]),
        ("pascal_context_59", "zero_shot_49_10", [0, 6, 7, 14, 19, 24, 31, 33, 48, 54]),
        ("pascal_context_60", "zero_shot_49_10_plus_background", [1, 7, 8, 15, 20, 25, 32, 34, 49, 55]),
        ("pascal_voc_21", "pascal_5i_fold1", [6, 7, 8, 9, 10]),
        ("coco_object_81", "coco_20i_fold0", list(range(1, 81, 4))),
        ("fss_1000", "few_shot_520_480", list(range(521, 1001))),
    ]:
        vocabulary = Vocabulary.load(name, split=split)
        assert vocabulary.unseen_indices == unseen_indices
        assert sorted(vocabulary.seen_indices + unseen_indices) == list(range(len(vocabulary)))


def test_recorded_seen_and_unseen_are_complementary():
    for name in RELEASED:
        for split, parts in _recorded(name).get("splits", {}).items():
            if "unseen" in parts:
                assert Vocabulary.load(name, split=split).seen_indices == parts["seen"]


def test_without_knowledge_all_classes_are_seen():
    vocabulary = Vocabulary.load("pascal_voc_20")
    assert (vocabulary.seen_indices, vocabulary.unseen_indices) == (list(range(20)), [])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("zero_shot_10_10", "no split 'zero_shot_10_10': available: zero_shot_156_15"),
        ("things_stuff", "available: zero_shot_156_15"),
    ],
)
def test_unknown_split_lists_the_available_ones(split, message):
    with pytest.raises(InputError, match=message):
        Vocabulary.load("coco_stuff_171", split=split)


def test_unknown_split_of_a_vocabulary_without_splits():
    with pytest.raises(InputError, match="has none"):
        Vocabulary.load("ade20k_150", split="zero_shot")


def test_unknown_vocabulary_names_close_ones():
    with pytest.raises(InputError, match="unknown vocabulary 'coco_stuf_171': did you mean 'coco_stuff_171'"):
        Vocabulary.load("coco_stuf_171")
    with pytest.raises(InputError, match="available: ade20k_150"):
        Vocabulary.load("templates")


def test_from_words():
    vocabulary = Vocabulary.from_words([" cat ", "sofa,  couch ", "wine   glass"])
    assert vocabulary.classes == ("cat", "sofa", "wine glass")
    assert vocabulary.synonyms == (("cat",), ("sofa", "couch"), ("wine glass",))
    assert vocabulary.index("Couch") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "vocabulary is empty"),
        (["cat", " "], "empty word"),
        (["sofa, , couch"], "entry 'sofa, , couch' has an empty word"),
        (["cat", "Cat"], "'cat' occurs more than once"),
        (["car, vehicle", "truck, vehicle"], "'vehicle' occurs more than once"),
        ("cat, dog", "one string"),
    ],
)
def test_from_words_refuses(words, message):
    with pytest.raises(InputError, match=message):
        Vocabulary.from_words(words)


def test_index_finds_names_then_synonyms():
    vocabulary = Vocabulary.load("coco_stuff_171")
    assert vocabulary.classes[vocabulary.index("building-other")] == "building-other"
    assert vocabulary.classes[vocabulary.index("buildings")] == "building-other"
    with pytest.raises(InputError, match="no class 'girafe': did you mean 'giraffe'"):
        vocabulary.index("girafe")


def test_ambiguous_synonym_is_refused():
    vocabulary = Vocabulary.from_words(["car", "truck"])
    values = vocabulary.to_dict() | {"synonyms": [["car", "vehicle"], ["truck", "vehicle"]]}
    with pytest.raises(InputError, match="several classes of 'words' \\('car', 'truck'\\)"):
        Vocabulary.from_dict(values).index("vehicle")


def test_subset_keeps_every_field_aligned():
    whole = Vocabulary.load("pascal_voc_20", split="zero_shot_15_5")
    part = whole.subset([19, 0])
    assert part.classes == ("tvmonitor", "aeroplane")
    assert part.synonyms == (whole.synonyms[19], whole.synonyms[0])
    assert part.seen == (False, True)
    assert part.palette == (whole.palette[19], whole.palette[0])
    with pytest.raises(InputError, match="no class 20: indices go from 0 to 19"):
        whole.subset([20])
    with pytest.raises(InputError, match="empty"):
        whole.subset([])


@pytest.mark.parametrize("name", ["ade20k_847", "pascal_voc_21", "pascal_context_59"])
def test_plain_dictionary_survives_json(name):
    vocabulary = Vocabulary.load(name).with_seen_from(Vocabulary.load("coco_panoptic_133"))
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)


def test_impossible_vocabularies_are_refused():
    values = Vocabulary.from_words(["cat", "dog"]).to_dict()
    with pytest.raises(InputError, match="2 classes but 1 seen"):
        Vocabulary.from_dict(values | {"seen": [True]})
    with pytest.raises(InputError, match="ignore index 1 of 'words' is also the label of 'dog'"):
        Vocabulary.from_dict(values | {"ignore_index": 1})
    with pytest.raises(InputError, match="class 'cat' more than once"):
        Vocabulary.from_dict(values | {"classes": ["cat", "cat"]})


def test_generated_colours_are_distinct_and_stable():
    palette = generate_palette(847)
    assert len(set(palette)) == 847
    assert generate_palette(30) == palette[:30]
    first = palette[:20]
    distances = [sum(abs(a - b) for a, b in zip(x, y, strict=True)) for i, x in enumerate(first) for y in first[:i]]
    assert min(distances) >= 64


def test_needs_no_torch():
    code = "import sys, ovsl.vocabulary as v; v.Vocabulary.load('ade20k_847'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
