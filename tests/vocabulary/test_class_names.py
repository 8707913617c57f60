"""Named sets of class names."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary, available_class_names, load_class_names


@pytest.mark.parametrize("name", available_class_names())
def test_every_set_renames_classes_of_its_vocabulary(name: str) -> None:
    file = resources.files("ovsl.vocabulary").joinpath("data", "class_names.json")
    vocabulary = json.loads(file.read_text())["class_names"][name]["vocabulary"]
    names = load_class_names(name)
    assert set(names) <= set(Vocabulary.load(vocabulary).classes)
    assert all(old != new for old, new in names.items())


def test_names_may_be_written_out_or_left_out() -> None:
    assert load_class_names({"tv": "television"}) == {"tv": "television"}
    assert load_class_names(None) == {}
    assert load_class_names("denseclip_ade20k")["tv"] == "television receiver"


def test_an_unknown_set() -> None:
    with pytest.raises(InputError, match=r"unknown class names 'denseclip_ade'.*'denseclip_ade20k'"):
        load_class_names("denseclip_ade")


def test_a_set_of_names_is_no_vocabulary() -> None:
    assert "class_names" not in Vocabulary.available()
