from dataclasses import replace

import numpy as np

from ovsl.results.drawing import IGNORED_COLOR, Picture, colorize, draw_overlay, draw_sheet, overlay, present_classes
from ovsl.vocabulary import Vocabulary

WORDS = replace(Vocabulary.from_words(["cat", "dog", "sky"]), seen=(True, False, True))


def test_colours_are_those_of_the_palette_and_ignored_pixels_white():
    colors = colorize(np.array([[0, 2, 255]]), WORDS)
    assert colors.tolist() == [[list(WORDS.palette[0]), list(WORDS.palette[2]), list(IGNORED_COLOR)]]


def test_more_than_256_classes_have_colours():
    many = Vocabulary.from_words([f"word{i}" for i in range(847)])
    labels = np.array([[846, many.ignore_index]])
    assert colorize(labels, many)[0, 0].tolist() == list(many.palette[846])
    assert colorize(labels, many)[0, 1].tolist() == list(IGNORED_COLOR)


def test_overlay_shows_the_image_and_marks_borders():
    image = np.full((4, 6, 3), 200, dtype=np.uint8)
    labels = np.zeros((4, 6), dtype=np.int64)
    labels[:, 3:] = 1
    mixed = overlay(image, labels, WORDS, opacity=0.5)
    expected = (200 + np.array(WORDS.palette[0])) / 2
    assert np.abs(mixed[0, 0] - expected).max() <= 0.5
    assert (mixed[:, 3] == 0).all()
    assert (mixed[:, 4] != 0).any()


def test_legend_names_the_most_frequent_classes():
    labels = np.repeat(np.arange(5), [1, 9, 3, 0, 7])
    words = Vocabulary.from_words(["a", "b", "c", "d", "e"])
    assert present_classes([labels], words) == [0, 1, 2, 4]
    assert present_classes([labels], words, most=2) == [1, 4]


def test_sheet_has_a_column_for_the_truth_only_where_there_is_one():
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    labels = np.random.default_rng(0).integers(0, 3, (32, 48))
    with_truth = draw_sheet([Picture("a", image, labels, labels)] * 2, WORDS, "title")
    without = draw_sheet([Picture("a", image, labels)] * 2, WORDS, "title")
    assert with_truth.shape[1] > without.shape[1]
    assert with_truth.dtype == np.uint8
    shown = with_truth.reshape(-1, 3)
    assert all((shown == np.array(color)).all(1).sum() > 100 for color in WORDS.palette)


def test_overlay_picture_is_wider_than_the_photo_for_its_legend():
    picture = Picture("a", np.zeros((32, 48, 3), dtype=np.uint8), np.zeros((32, 48), dtype=np.int64))
    drawn = draw_overlay(picture, WORDS)
    assert drawn.shape[1] / drawn.shape[0] > 48 / 32
