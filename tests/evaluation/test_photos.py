"""Photos of any size in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ovsl.clip import TextEmbeddings
from ovsl.evaluation import Segmenter, Words
from ovsl.inference import DensePrediction, MaskPrediction, MultiScale, Prediction, SlidingWindow, WholeImage
from ovsl.vocabulary import Vocabulary


class Halves:
    """Says "left" of the left half of an image and "right" of the right one."""

    def __init__(self, predicts_masks: bool = False) -> None:
        self.predicts_masks = predicts_masks
        self.needs_regions = False

    def words(self, vocabulary: Vocabulary) -> Words:
        count = len(vocabulary)
        return Words(vocabulary, TextEmbeddings(torch.eye(count), torch.arange(count), count))

    def __call__(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        maps = torch.full((len(images), text.num_classes, 8, 8), -9.0)
        maps[:, 0, :, :4] = 9.0
        maps[:, 1, :, 4:] = 9.0
        if self.predicts_masks:
            return MaskPrediction(maps, torch.eye(text.num_classes).expand(len(images), -1, -1))
        return DensePrediction(maps)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("inference", [WholeImage(), SlidingWindow(64, 64), MultiScale(scales=(1.0,), flip=False)])
def test_a_huge_photo_gets_maps_of_its_size_from_a_bounded_computation(
    masks: bool, inference: WholeImage | SlidingWindow | MultiScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovsl.evaluation.segmenter.PHOTO_PIXELS", 100 * 100)
    segmenter = Segmenter(Halves(masks), Vocabulary.from_words(["left", "right"]), inference)
    computed: list[tuple[int, int]] = []
    original = Segmenter.__call__

    def call(self: Segmenter, images: Any, sizes: Any, segments: bool = False, regions: Any = None) -> Any:
        computed.extend(sizes)
        return original(self, images, sizes, segments, regions)

    monkeypatch.setattr(Segmenter, "__call__", call)
    (found,) = segmenter.photos([torch.zeros(3, 64, 64, dtype=torch.uint8)], [(1200, 2000)])
    assert found.labels.shape == (1200, 2000)
    assert computed[0][0] * computed[0][1] <= 100 * 100
    assert found.labels[:, :950].eq(0).all()
    assert found.labels[:, 1050:].eq(1).all()
    if masks and isinstance(inference, WholeImage):
        assert found.panoptic is not None
        assert found.panoptic.segment_ids.shape == (1200, 2000)


def test_a_photo_that_is_affordable_is_answered_at_its_own_size() -> None:
    segmenter = Segmenter(Halves(), Vocabulary.from_words(["left", "right"]), WholeImage())
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    (photo,), (exact,) = segmenter.photos([image], [(300, 500)]), segmenter([image], [(300, 500)])
    assert torch.equal(photo.labels, exact.labels)


def test_methods_that_hold_all_classes_get_fewer_pixels_where_there_are_many_words() -> None:
    words = Vocabulary.from_words([f"word {number}" for number in range(5000)])
    many = Segmenter(Halves(), words, MultiScale())
    height, width = many.affordable((3000, 4000))
    assert height * width * 5000 <= 2**28
    assert Segmenter(Halves(), Vocabulary.from_words(["a", "b"]), WholeImage()).affordable((1000, 1000)) == (1000, 1000)


@pytest.mark.parametrize("masks", [False, True])
def test_scores_of_thousands_of_words_are_bounded_too(masks: bool) -> None:
    words = Vocabulary.from_words([f"word {number}" for number in range(5000)])
    height, width = Segmenter(Halves(masks), words, WholeImage()).affordable((6000, 8000))
    assert height * width * 5000 <= 2**31
    assert width / height == pytest.approx(8 / 6, rel=0.01)
