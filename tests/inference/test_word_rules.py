"""From scores of words to label maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.inference import (
    PAMR,
    DensePrediction,
    MaskPrediction,
    SlidingWindow,
    WholeImage,
    WordClasses,
    WordInference,
    WordRules,
    resize,
)
from ovsl.inference.regions import most_frequent_labels, resize_regions
from ovsl.vocabulary import Vocabulary

WORD_CLASSES = WordClasses(torch.tensor([0, 0, 0, 1, 2, 2, 3]), num_classes=4)


def random_scores(size: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, len(WORD_CLASSES), size, size, generator=generator) / 10


def plain_labels(rules: WordRules, scores: Tensor) -> Tensor:
    """The rules written down word by word, class by class, with everything held at once."""
    labels = []
    for image in scores:
        probabilities = (rules.logit_scale * image).softmax(0)
        classes = torch.stack([probabilities[c == WORD_CLASSES.index].amax(0) for c in range(4)])
        if rules.area_threshold is not None:
            found = classes.argmax(0)
            areas = [int((found == c).sum()) for c in range(1, 4)]
            for c, area in enumerate(areas, start=1):
                if area <= rules.area_threshold * sum(areas):
                    classes[c] = 0
        best, label = classes.max(0)
        label[best < rules.probability_threshold] = 0
        labels.append(label)
    return torch.stack(labels)


@pytest.mark.parametrize("area", [None, 0.3])
@pytest.mark.parametrize("probability", [0.0, 0.5])
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_of_words_give_the_labels_of_all_words_together(
    area: float | None, probability: float, chunk_size: int
) -> None:
    rules, scores = WordRules(20.0, probability, area), random_scores()
    expected = plain_labels(rules, scores)
    assert torch.equal(rules.labels(lambda words: scores[:, words], WORD_CLASSES, chunk_size), expected)
    assert torch.equal(rules.thresholded(rules.probabilities(scores, WORD_CLASSES)).argmax(1), expected)
    assert expected.unique().numel() > 1, "a map of one label proves little"


def test_areas_are_shares_of_the_foreground_of_each_image_alone() -> None:
    rules = WordRules(area_threshold=0.25)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[0, 0, :3], labels[0, 1, 0] = 1, 2  # 3 and 1 of 4 foreground pixels; 1 is not more than a quarter
    labels[1, 0, :2], labels[1, 1, :2] = 2, 3
    found = rules.small_classes(labels, 4)
    assert found.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_thresholds_need_a_background() -> None:
    animals = Vocabulary.from_words(["cat", "dog"])
    with pytest.raises(InputError, match="class 0 of 'words' is 'cat': give a vocabulary whose class 0"):
        WordInference(rules=WordRules(probability_threshold=0.1)).check(animals)
    WordInference().check(animals)
    WordInference(rules=WordRules(area_threshold=0.1)).check(Vocabulary.from_words(["background", "cat"]))
    WordInference(rules=WordRules(area_threshold=0.1)).check(Vocabulary.from_words(["sky, wall, Background", "cat"]))


def predict(images: Tensor) -> DensePrediction:
    """Cosines that depend on the window's content."""
    generator = torch.Generator().manual_seed(5)
    projection = torch.randn(len(WORD_CLASSES), 3, generator=generator)
    cells = resize(images.float() / 255, (5, 6))
    return DensePrediction(torch.einsum("nc,bchw->bnhw", projection, cells), word_classes=WORD_CLASSES)


def random_images(height: int = 40, width: int = 52) -> Tensor:
    return torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("inner", [WholeImage(), SlidingWindow(24, 16)])
def test_windows_are_joined_word_by_word(inner: WholeImage | SlidingWindow) -> None:
    images = random_images()
    inference = WordInference(inner, WordRules(5.0), word_chunk_size=2)
    if isinstance(inner, SlidingWindow):
        total, count = torch.zeros(1, len(WORD_CLASSES), 40, 52), torch.zeros(40, 52)
        for y1, x1, y2, x2 in inner.windows(40, 52):
            total[..., y1:y2, x1:x2] += resize(predict(images[..., y1:y2, x1:x2]).scores, (y2 - y1, x2 - x1))
            count[y1:y2, x1:x2] += 1
        scores = total / count
    else:
        scores = resize(predict(images).scores, (40, 52))
    expected = plain_labels(inference.rules, resize(scores, (33, 41)))
    assert torch.equal(inference.labels(predict, images, (33, 41)), expected)
    assert torch.equal(inference.scores(predict, images, (33, 41)).argmax(1), expected)


def test_whole_image_may_go_straight_to_the_original_size() -> None:
    images = random_images()
    straight = WordInference(WholeImage(), at_input_size=False)
    scores = straight.word_scores(predict, images, (90, 70))[0](slice(None))
    torch.testing.assert_close(scores, resize(predict(images).scores, (90, 70)))
    stopped = WordInference(WholeImage()).word_scores(predict, images, (90, 70))[0](slice(None))
    torch.testing.assert_close(stopped, resize(resize(predict(images).scores, (40, 52)), (90, 70)))


def test_other_inferences_take_the_best_word_of_a_class() -> None:
    images = random_images()
    scores = resize(predict(images).scores, (40, 52))
    expected = torch.stack([scores[0, c == WORD_CLASSES.index].amax(0) for c in range(4)])[None]
    torch.testing.assert_close(predict(images).semantic_scores((40, 52)), expected)
    torch.testing.assert_close(predict(images).semantic_scores((40, 52), slice(1, 3)), expected[:, 1:3])
    assert torch.equal(WholeImage().labels(predict, images, (40, 52)), expected.argmax(1))


def test_padding_is_cut_away_after_the_resize() -> None:
    scores = torch.arange(16.0).view(1, 1, 4, 4)
    prediction = DensePrediction(scores, padding=(1, 2, 3, 0))
    expected = resize(scores, (8, 8))[..., 3:8, 1:6]
    torch.testing.assert_close(prediction.semantic_scores((5, 5)), expected)


def test_masks_have_no_words() -> None:
    masks = MaskPrediction(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="need scores on a grid"):
        WordInference(WholeImage()).labels(lambda images: masks, random_images(), (8, 8))


def test_refinement_in_chunks_is_that_of_all_words() -> None:
    images = random_images(30, 30)
    refined = WordInference(WholeImage(), WordRules(5.0), PAMR(2, (1, 3)), word_chunk_size=2)
    scores_of, word_classes = refined.word_scores(predict, images, (30, 30))
    together = scores_of(slice(None))
    apart = torch.cat([scores_of(slice(i, i + 1)) for i in range(len(word_classes))], dim=1)
    torch.testing.assert_close(apart, together)
    assert torch.equal(refined.labels(predict, images, (30, 30)), plain_labels(refined.rules, together))


def plain_pamr(images: Tensor, scores: Tensor, steps: int, dilations: tuple[int, ...]) -> Tensor:
    """PAMR pixel by pixel, one image of one channel."""
    height, width = scores.shape
    shifts = [(r * y, r * x) for r in dilations for y in (-1, 0, 1) for x in (-1, 0, 1)]

    def at(maps: Tensor, y: int, x: int) -> Tensor:
        return maps[..., min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    weights = {}
    for y in range(height):
        for x in range(width):
            around = torch.stack([at(images, y + dy, x + dx) for dy, dx in shifts])
            deviation = around.std(0, unbiased=True)
            near = torch.stack([at(images, y + dy, x + dx) for dy, dx in shifts if dy or dx])
            weights[y, x] = (-(near - images[:, y, x]).abs() / (1e-8 + 0.1 * deviation)).mean(1).softmax(0)
    for _ in range(steps):
        refined = scores.clone()
        for (y, x), weight in weights.items():
            near = torch.stack([at(scores, y + dy, x + dx) for dy, dx in shifts if dy or dx])
            refined[y, x] = (weight * near).sum()
        scores = refined
    return scores


def test_pamr_is_what_its_definition_says_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    images, scores = torch.rand(3, 7, 6, generator=generator), torch.rand(7, 6, generator=generator)
    pamr = PAMR(2, (1, 3))
    found = pamr.refine(scores[None, None], pamr.weights(images[None]))[0, 0]
    torch.testing.assert_close(found, plain_pamr(images, scores, 2, (1, 3)))
    shifted = pamr.weights(images[None] * 3 - 1)
    torch.testing.assert_close(shifted, pamr.weights(images[None]))


def test_most_frequent_label_of_a_region() -> None:
    labels = torch.tensor([[[2, 1, 1, 0], [2, 1, 3, 3]]])
    regions = torch.tensor([[[4, 4, 7, 7], [4, 4, 9, 9]]], dtype=torch.int32)
    # The smallest value covers nothing; 1 and 0 are as frequent in region 7, and the smaller label wins.
    assert most_frequent_labels(labels, regions).tolist() == [[[2, 1, 0, 0], [2, 1, 3, 3]]]


def test_region_maps_are_resized_by_the_nearest_pixel_and_keep_large_numbers() -> None:
    regions = torch.tensor([[[0, 70000, 3], [16777215, 5, 6]]], dtype=torch.int32)
    found = resize_regions(regions, (4, 2))
    assert found.dtype == torch.int32
    assert found.tolist() == [[[0, 70000], [0, 70000], [16777215, 5], [16777215, 5]]]
