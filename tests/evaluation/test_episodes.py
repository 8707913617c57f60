"""The few-shot protocol against the rules of the official evaluator."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ovsl.data.batches import EvaluationTask
from ovsl.errors import InputError
from ovsl.evaluation import EpisodeEvaluation, RunHeader
from ovsl.evaluation.episodes import question as words_of_question
from ovsl.inference import Segmentation
from ovsl.metrics.episodes import EpisodeIoU
from ovsl.results.bootstrap import totals
from ovsl.scores import episode_scores
from ovsl.vocabulary import ClassNames, Vocabulary

WORDS = replace(Vocabulary.from_words(["ground", "cat", "dog", "cow"]), seen=(True, False, True, False))


def bound(words: Vocabulary) -> SimpleNamespace:
    """Answers with the pixels whose value is the class that is asked."""

    def answer(images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Segmentation]:
        return [Segmentation((image[0] == WORDS.classes.index(words.classes[1])).long()) for image in images]

    found = type("Bound", (), {"__call__": staticmethod(answer)})()
    found.vocabulary, found.method = words, SimpleNamespace(predicts_masks=False)
    return found


def question(seed: int) -> tuple[str, int, Tensor, Tensor, Tensor]:
    draw = np.random.default_rng(seed)
    target, ignored = draw.random((20, 30)) < 0.3, draw.random((20, 30)) < 0.1
    prediction = np.where(draw.random((20, 30)) < 0.8, target, draw.random((20, 30)) < 0.5)
    return f"image {seed}", int(draw.choice([1, 3])), *map(torch.from_numpy, (prediction, target & ~ignored, ignored))


def official(entries: list[tuple]) -> tuple[float, float]:
    """By the rule: areas of both values by histogram, ignored pixels set to 255 in both, summed by class."""
    inter, union = np.zeros((2, 4)), np.zeros((2, 4))
    for _, label, prediction, target, ignored in entries:
        found, truth = (np.where(ignored, 255, value.numpy().astype(int)) for value in (prediction, target))
        for value in (0, 1):
            common = ((found == value) & (truth == value)).sum()
            inter[value, label] += common
            union[value, label] += (found == value).sum() + (truth == value).sum() - common
    iou = inter / np.maximum(union, 1)
    return iou[1, [1, 3]].mean(), (inter.sum(1) / union.sum(1)).mean()


def test_figures_are_those_of_the_official_evaluator_in_any_order() -> None:
    entries = [question(seed) for seed in range(40)]
    metric, other = EpisodeIoU(4), EpisodeIoU(4)
    for entry in entries:
        metric.update(*entry)
    for entry in entries[::-1]:
        other.update(*entry)
    values = metric.compute()
    expected = official(entries)
    assert values["binary_mIoU"].item() == pytest.approx(expected[0])
    assert values["FB_IoU"].item() == pytest.approx(expected[1])
    assert values["iou"].isnan().tolist() == [True, False, True, False]
    again = other.compute()
    assert all(values[name] == again[name] for name in metric.scalars)
    assert values["binary_mIoU_episodes"].item() == pytest.approx(expected[0], abs=0.05)
    assert values["binary_mIoU_episodes"] != values["binary_mIoU"]
    assert EpisodeIoU(4).compute()["FB_IoU"].isnan()


def test_a_question_has_the_names_of_its_vocabulary() -> None:
    whole = Vocabulary.load("coco_object_81")
    asked = words_of_question(whole, 11)
    assert (asked.classes, asked.seen) == (("others", "fire hydrant"), None)
    assert ClassNames("lseg").principal(asked) == ("others", "firehydrant")


def test_each_image_is_asked_for_the_unseen_classes_that_it_holds() -> None:
    asked = []

    def segmenter(words: Vocabulary) -> SimpleNamespace:
        asked.append(words.classes)
        return bound(words)

    semantic = torch.tensor([[0, 1, 1, 2], [255, 1, 3, 2]])
    image = semantic.repeat_interleave(2, 0)[None].repeat(3, 1, 1).to(torch.uint8)  # stretched: 4 x 4
    evaluation = EpisodeEvaluation(EvaluationTask("fold", WORDS), segmenter, count_images=True)
    second = torch.full((2, 4), 2)
    images = [image, torch.zeros(3, 4, 4, dtype=torch.uint8)]
    batch = {"image": images, "semantic": [semantic, second], "id": ["a", "b"], "original_size": [(2, 4)] * 2}
    first, _ = evaluation.update(batch)
    assert asked == [WORDS.classes, ("others", "cat"), ("others", "cow")]
    assert first.labels.tolist() == [[0, 1, 1, 0], [0, 1, 3, 0]]
    result = evaluation.result(RunHeader("run", "method", "test", 0))
    assert result.metrics["binary_mIoU"] == result.metrics["FB_IoU"] == 1
    assert [(entry.name, entry.iou) for entry in result.per_class] == [("cat", 1.0), ("cow", 1.0)]
    assert result.images == 2
    assert result.intervals == dict.fromkeys(EpisodeIoU.scalars, (1.0, 1.0))


def test_intervals_of_episodes_are_those_of_other_draws_of_images() -> None:
    evaluation = EpisodeEvaluation(EvaluationTask("fold", WORDS), lambda words: bound(words), count_images=True)
    draw = torch.Generator().manual_seed(0)
    for number in range(60):
        semantic = torch.randint(0, 4, (6, 6), generator=draw)
        image = (semantic + (torch.rand(6, 6, generator=draw) < number / 120))[None].repeat(3, 1, 1).to(torch.uint8)
        evaluation.update({"image": [image], "semantic": [semantic], "id": [f"{number}"], "original_size": [(6, 6)]})
    result = evaluation.result(RunHeader("run", "method", "test", 0))
    assert result.intervals.keys() == result.metrics.keys()
    for name, (low, high) in result.intervals.items():
        assert 0.01 < high - low < 0.2
        assert low < result.metrics[name] < high
    counts = result.image_counts
    assert counts is not None
    sums = {name: counts.dense(name).sum(0) for name in counts.columns}
    assert float(episode_scores(sums)["FB_IoU"]) == pytest.approx(result.metrics["FB_IoU"])
    whole = {name: float(drawn[0]) for name, drawn in episode_scores(totals(counts)).items() if name != "iou"}
    assert whole == {name: pytest.approx(result.metrics[name]) for name in whole}


def test_a_dataset_without_unseen_classes_cannot_be_asked() -> None:
    words = Vocabulary.from_words(["cat", "dog"])
    bound = SimpleNamespace(vocabulary=words, method=SimpleNamespace(predicts_masks=False))
    with pytest.raises(InputError, match="no class of its is unseen"):
        EpisodeEvaluation(EvaluationTask("fold", words), lambda words: bound)
