import re

import numpy as np
import pytest

from ovsl.data.toy import ATTRIBUTES, CLASSES, SHAPES, STUFF, THINGS, render_scene
from ovsl.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(3, index) for index in range(200)]


def test_scene_is_a_function_of_seed_and_index():
    first, again = render_scene(5, 17), render_scene(5, 17)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.semantic, again.semantic)
    np.testing.assert_array_equal(first.instances, again.instances)
    assert first.caption == again.caption
    for other in (render_scene(5, 18), render_scene(6, 17)):
        assert (first.image != other.image).mean() > 0.5


def test_scene_does_not_depend_on_what_was_drawn_before():
    alone = render_scene(1, 4)
    for index in range(4):
        render_scene(1, index)
    np.testing.assert_array_equal(alone.image, render_scene(1, 4).image)


def test_every_class_appears_and_every_pixel_has_one(scenes):
    seen = np.unique(np.concatenate([np.unique(scene.semantic) for scene in scenes]))
    np.testing.assert_array_equal(seen, np.arange(len(CLASSES)))


def test_masks_agree_with_objects(scenes):
    for scene in scenes:
        assert scene.image.shape == (*scene.semantic.shape, 3)
        assert scene.image.dtype == scene.semantic.dtype == scene.instances.dtype == np.uint8
        assert scene.instances.max() == len(scene.objects)
        for number, item in enumerate(scene.objects, start=1):
            pixels = scene.semantic[scene.instances == number]
            assert len(pixels) == item.visible_pixels
            assert np.all(pixels == item.class_index)
        background = scene.semantic[scene.instances == 0]
        assert set(np.unique(background)) <= set(scene.stuff)
        assert min(scene.stuff) >= len(THINGS)


def test_objects_stay_recognisable(scenes):
    areas = np.array([item.visible_pixels for scene in scenes for item in scene.objects])
    assert np.quantile(areas, 0.01) > 150
    assert sum(len(scene.objects) > 1 for scene in scenes) > 100


def test_caption_names_what_is_there_and_nothing_else(scenes):
    for scene in scenes:
        named = {i for i, name in enumerate(CLASSES) if re.search(rf"\b{name}\b", scene.caption)}
        assert named == set(scene.classes)


def test_requested_classes_and_size_are_kept():
    for index in range(20):
        scene = render_scene(0, index, 96, num_objects=(1, 1), classes=[7])
        assert scene.image.shape == (96, 96, 3)
        assert [item.class_index for item in scene.objects] == [7]


def test_colours_are_what_the_names_say(scenes):
    means = {name: [] for name in ("red", "yellow", "blue", "white", "black")}
    for scene in scenes:
        for number, item in enumerate(scene.objects, start=1):
            attribute = THINGS[item.class_index].split()[0]
            if attribute in means:
                means[attribute].append(scene.image[scene.instances == number].mean(0))
    red, yellow, blue, white, black = (np.mean(values, 0) for values in means.values())
    assert red[0] > 2 * max(red[1:])
    assert min(yellow[:2]) > 2 * yellow[2]
    assert blue[2] > 2 * max(blue[:2])
    assert min(white) > 170 > 80 > max(black)


def test_vocabulary_lists_the_classes_and_a_fair_split():
    vocabulary = Vocabulary.load("toy", split="zero_shot")
    assert vocabulary.classes == CLASSES
    assert vocabulary.ignore_index == 255
    assert [CLASSES[i] for i, thing in enumerate(vocabulary.things) if not thing] == list(STUFF)
    assert len(set(vocabulary.palette)) == len(CLASSES)
    assert len(THINGS) >= 30
    assert len(vocabulary.unseen_indices) >= 8
    assert all(i < len(THINGS) for i in vocabulary.unseen_indices), "stuff is always seen"
    words = [CLASSES[i].split() for i in vocabulary.seen_indices if i < len(THINGS)]
    # What is unseen is the composition, never one of its two words.
    assert {attribute for attribute, _ in words} == set(ATTRIBUTES)
    assert {shape for _, shape in words} == set(SHAPES)


def test_the_harder_split_holds_out_two_words():
    vocabulary = Vocabulary.load("toy", split="zero_shot_words")
    seen, unseen = ([CLASSES[i] for i in part] for part in (vocabulary.seen_indices, vocabulary.unseen_indices))
    assert set(STUFF) <= set(seen)
    assert not any("purple" in name or "ring" in name for name in seen)
    assert all("purple" in name or "ring" in name for name in unseen)


def test_the_hardest_split_shows_each_attribute_once():
    vocabulary = Vocabulary.load("toy", split="zero_shot_few_seen")
    seen = [CLASSES[i] for i in vocabulary.seen_indices]
    assert set(STUFF) <= set(seen)
    words = [name.split() for name in seen if name not in STUFF]
    assert sorted(attribute for attribute, _ in words) == sorted(ATTRIBUTES)
    assert {shape for _, shape in words} == set(SHAPES)
    assert len(vocabulary.unseen_indices) == len(THINGS) - len(ATTRIBUTES)
