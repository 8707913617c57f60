"""A method with its words: seen marks decided once, closed sets in their places, whatever is asked."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ovsl.clip import TextEmbeddings
from ovsl.data.batches import EvaluationBatch, EvaluationTask
from ovsl.evaluation import DatasetEvaluation, RunHeader, Segmenter, Words
from ovsl.inference import DensePrediction, MaskPrediction, Prediction, WholeImage
from ovsl.vocabulary import Vocabulary

SIZE = (4, 6)


class Reader:
    """Reads classes off the red channel; knows the last two words of a vocabulary only, as a closed set would."""

    needs_regions = False

    def __init__(self, predicts_masks: bool) -> None:
        self.predicts_masks = predicts_masks

    def words(self, vocabulary: Vocabulary) -> Words:
        text = TextEmbeddings(torch.eye(2), torch.arange(2), 2)
        return Words(vocabulary, text, torch.tensor([len(vocabulary) - 2, len(vocabulary) - 1]))

    def __call__(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        masks = torch.stack([images[:, 0] == 0, images[:, 0] == 1], dim=1).float()
        if not self.predicts_masks:
            return DensePrediction(masks)
        scores = torch.eye(2).expand(len(images), 2, 2) * 0.9
        return MaskPrediction(masks * 40 - 20, scores, torch.full((len(images), 2), 0.05))


def image() -> Tensor:
    red = torch.zeros(3, *SIZE, dtype=torch.uint8)
    red[0, :, 3:] = 1
    return red


WORDS = replace(Vocabulary.from_words(["lamp", "sky", "car"]), things=(True, False, True))


def test_a_closed_set_answers_in_the_classes_of_the_vocabulary_also_with_segments() -> None:
    expected = image()[0].long() + 1
    for predicts_masks in (False, True):
        segmenter = Segmenter(Reader(predicts_masks), WORDS, WholeImage())
        (found,) = segmenter([image()], [SIZE], segments=True)
        assert torch.equal(found.labels, expected)
        scores = segmenter.scores(image()[None])
        assert torch.equal(scores.argmax(1)[0], expected)
        assert (scores[:, 0] == float("-inf")).all()
    assert found.panoptic is not None
    assert found.instances is not None
    assert sorted(found.panoptic.classes.tolist()) == [1, 2]
    assert set(found.instances.labels.tolist()) == {2}, "sky is no thing"


def test_panoptic_data_of_a_closed_set_counts_where_it_belongs() -> None:
    evaluation = DatasetEvaluation(
        EvaluationTask("toy", WORDS, {"mIoU": 50.0}), Segmenter(Reader(True), WORDS, WholeImage()), "skip"
    )
    truth = image()[0].long() + 1
    batch: EvaluationBatch = {
        "image": [image()],
        "original_size": [SIZE],
        "id": ["one"],
        "semantic": [truth],
        "segment_ids": [truth.int()],
        "segment_classes": [torch.tensor([1, 2])],
        "segment_crowd": [torch.zeros(2, dtype=torch.bool)],
    }
    evaluation.update(batch)
    result = evaluation.result(RunHeader("run", "Reader", "test", 7))
    assert {name: result.metrics[name] for name in ("mIoU", "PQ", "AP")} == {"mIoU": 1.0, "PQ": 1.0, "AP": 1.0}
    assert result.metrics["hIoU"] is None
    assert result.published == {"mIoU": 0.5}
    assert [(each.name, each.iou, each.pixels) for each in result.per_class] == [
        ("lamp", None, 0), ("sky", 1.0, 12), ("car", 1.0, 12),
    ]  # fmt: skip
    assert (result.images, result.step, result.stage) == (1, 7, "test")
    assert type(result).from_json(result.to_json()) == result
