"""A diagnosis of cases whose answers are known: oracles, stolen pixels, near names; labels stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ovsl.clip import TextEmbeddings
from ovsl.data.batches import EvaluationBatch, EvaluationTask
from ovsl.evaluation import DatasetEvaluation, RunHeader, Segmenter, Words
from ovsl.evaluation.diagnosis import name_similarity
from ovsl.inference import DensePrediction, Inference, MaskPrediction, MultiScale, Prediction, SlidingWindow, WholeImage
from ovsl.results import EvaluationResult
from ovsl.results.confusion import Confusion
from ovsl.results.diagnosis import diagnose
from ovsl.results.diagnosis_counts import DiagnosisCounts
from ovsl.vocabulary import Vocabulary

SIZE = (4, 6)
WORDS = replace(
    Vocabulary.from_words(["road", "street", "sky", "kite"]),
    seen=(True, True, True, False),
    things=(False, False, False, True),
)
# Road and street are near, the others far from each other and from these.
NAMES = torch.tensor([[1.0, 0.1, 0.0, 0.0], [1.0, -0.1, 0.0, 0.0], [-1.0, 0.0, 1.0, 0.0], [-1.0, 0.0, -1.0, 0.0]])


class Painter:
    """Says what it was told, whatever it sees, and counts how often it is asked."""

    needs_regions = False

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self.predicts_masks = isinstance(prediction, MaskPrediction)
        self.asked = 0

    def words(self, vocabulary: Vocabulary) -> Words:
        text = TextEmbeddings(NAMES / NAMES.norm(dim=1, keepdim=True), torch.arange(4), 4)
        return Words(vocabulary, text)

    def __call__(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        self.asked += 1
        if isinstance(self.prediction, DensePrediction):
            return replace(self.prediction, scores=self.prediction.scores.expand(len(images), -1, -1, -1))
        return self.prediction


def batch(target: Tensor, segments: Tensor | None = None) -> EvaluationBatch:
    made: EvaluationBatch = {
        "image": [torch.zeros(3, *SIZE, dtype=torch.uint8)],
        "original_size": [SIZE],
        "id": ["one"],
        "semantic": [target],
    }
    if segments is not None:
        made["segment_ids"] = [segments]
        made["segment_classes"] = [torch.tensor([0, 3, 3])]
        made["segment_crowd"] = [torch.zeros(3, dtype=torch.bool)]
    return made


def diagnosed(prediction: Prediction, *images: EvaluationBatch) -> EvaluationResult:
    evaluation = DatasetEvaluation(
        EvaluationTask("toy", WORDS), Segmenter(Painter(prediction), WORDS, WholeImage()), "skip", diagnose=True
    )
    for image in images:
        evaluation.update(image)
    return evaluation.result(RunHeader("run", "Painter", "test", 0))


def told(result: EvaluationResult) -> dict:
    assert result.diagnosis is not None
    assert result.confusion is not None
    return diagnose(result, result.diagnosis, result.confusion.dense())


def scores_of(labels: Tensor, second: dict[int, float] | None = None) -> DensePrediction:
    """Scores 1 for the labels, and lower ones everywhere for some classes."""
    scores = torch.nn.functional.one_hot(labels, 4).movedim(-1, 0)[None].float()
    for label, value in (second or {}).items():
        scores[:, label] = scores[:, label].clamp(min=value)
    return DensePrediction(scores)


def halves(left: int, right: int, column: int = 3) -> Tensor:
    labels = torch.full(SIZE, left)
    labels[:, column:] = right
    return labels


def test_true_masks_mend_ragged_masks_of_a_dense_method() -> None:
    """A third of the kite is called sky: its mean score is highest for kite all the same."""
    found = halves(2, 3, column=4)
    answer = told(diagnosed(scores_of(found), batch(halves(2, 3))))
    assert answer["scores"]["measured"]["mIoU"] == pytest.approx((12 / 16 + 8 / 12) / 2)
    assert answer["scores"]["true_masks"]["mIoU"] == 1.0
    assert "true_classes" not in answer["scores"]


def test_true_masks_do_not_mend_a_wrong_name() -> None:
    answer = told(diagnosed(scores_of(halves(2, 2)), batch(halves(2, 3))))
    assert answer["scores"]["true_masks"]["mIoU"] == answer["scores"]["measured"]["mIoU"] == (12 / 24 + 0) / 2
    assert answer["stolen"]["unseen"] == {"pixels": 12, "right": 0.0, "other_unseen": 0.0, "other_seen": 1.0}
    assert answer["stolen"]["seen"] == {"pixels": 12, "right": 1.0, "other_unseen": 0.0, "other_seen": 0.0}
    assert answer["stolen"]["pairs"] == [{"truth": "kite", "prediction": "sky", "pixels": 12, "share": 1.0}]


def test_true_masks_are_segments_where_the_data_has_them() -> None:
    """Two kites, one called sky: as one area the larger one would name both, as segments each has its own name."""
    target, segments = torch.full(SIZE, 3), torch.full(SIZE, 2, dtype=torch.int32)
    segments[:, 4:] = 3
    found = halves(3, 2, column=4)
    area = told(diagnosed(scores_of(found), batch(target)))["scores"]["true_masks"]
    each = told(diagnosed(scores_of(found), batch(target, segments)))["scores"]["true_masks"]
    assert area["mIoU"] == 1.0
    assert each["mIoU"] == 16 / 24


def test_true_classes_mend_names_of_predicted_masks_and_not_their_edges() -> None:
    """Two masks, edge one column off, both called road: with true classes only the edge is wrong."""
    inside = halves(1, 0, column=4).float()
    logits = torch.stack([inside, 1 - inside])[None] * 40 - 20
    classes = torch.tensor([[[0.9, 0.0, 0.0, 0.0], [0.8, 0.1, 0.0, 0.0]]])
    prediction = MaskPrediction(logits, classes, torch.full((1, 2), 0.05))
    answer = told(diagnosed(prediction, batch(halves(2, 3))))
    assert answer["scores"]["measured"]["mIoU"] == 0.0
    assert answer["scores"]["true_classes"]["mIoU"] == pytest.approx((12 / 16 + 8 / 12) / 2)
    assert answer["scores"]["true_masks"]["mIoU"] == 0.0, "the names stay wrong"


def test_true_masks_get_the_class_of_the_query_that_overlaps_them_most() -> None:
    """Two queries with the right masks say sky and kite; two that cover everything say road, louder on every pixel."""
    left, everywhere = halves(1, 0).float(), torch.ones(SIZE)
    masks = torch.stack([left, 1 - left, everywhere, everywhere, left])
    classes = torch.zeros(1, 5, 4)
    classes[0, 0, 2], classes[0, 1, 3], classes[0, 2:4, 0], classes[0, 4, 1] = 0.4, 0.4, 0.6, 0.6
    silent = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.4]])
    silent[0, 4] = 0.9  # of equal overlap with the left half, but says that it is no object
    masks = torch.cat([masks[4:], masks[:4]])[None] * 40 - 20
    prediction = MaskPrediction(masks, torch.cat([classes[:, 4:], classes[:, :4]], 1), silent.roll(1, 1))
    answer = told(diagnosed(prediction, batch(halves(2, 3))))
    assert answer["scores"]["measured"]["mIoU"] == 0.0
    assert answer["scores"]["true_masks"]["mIoU"] == 1.0
    assert answer["true_masks_named_by"] == "matched queries"


def test_a_true_mask_that_no_query_overlaps_keeps_its_answer() -> None:
    left = halves(1, 0).float()
    prediction = MaskPrediction(left[None, None] * 40 - 20, torch.tensor([[[0.0, 0.0, 0.9, 0.05]]]), torch.zeros(1, 1))
    answer = told(diagnosed(prediction, batch(halves(2, 3))))
    assert answer["scores"]["true_masks"]["mIoU"] == answer["scores"]["measured"]["mIoU"] == (12 / 24 + 0) / 2


def test_a_closed_set_of_masks_is_diagnosed_in_the_classes_of_the_vocabulary() -> None:
    class Closed(Painter):
        def words(self, vocabulary: Vocabulary) -> Words:
            return Words(vocabulary, TextEmbeddings(torch.eye(2), torch.arange(2), 2), torch.tensor([2, 3]))

    left = halves(1, 0).float()
    masks = torch.stack([left, 1 - left])[None] * 40 - 20
    segmenter = Segmenter(Closed(MaskPrediction(masks, 0.9 * torch.eye(2)[None])), WORDS, WholeImage())
    evaluation = DatasetEvaluation(EvaluationTask("toy", WORDS), segmenter, "skip", diagnose=True)
    evaluation.update(batch(halves(2, 3)))
    answer = told(evaluation.result(RunHeader("run", "Closed", "test", 0)))
    assert answer["scores"]["true_masks"]["mIoU"] == answer["scores"]["true_classes"]["mIoU"] == 1.0


def test_mistakes_between_near_names_are_counted_apart() -> None:
    """Of 24 pixels of road, 12 are called street, which is near, and 4 sky."""
    found = halves(0, 1)
    found[:, 0] = 2
    answer = told(diagnosed(scores_of(found), batch(torch.full(SIZE, 0))))
    near = answer["near_names"]
    assert (near["wrong_pixels"], near["between_near_names"], near["threshold"]) == (16, 12 / 16, 0.5)
    assert near["pairs_of_near_names"] == 1
    ((pair),) = near["pairs"]
    assert (pair["truth"], pair["prediction"], pair["pixels"], pair["share"]) == ("road", "street", 12, 0.5)
    assert pair["similarity"] > 0.9
    assert answer["scores"]["near_names_forgiven"]["mIoU"] == 20 / 24


def test_an_offset_gives_back_what_a_seen_word_has_stolen() -> None:
    """The kite is called sky, by 0.4: an offset beyond that finds all of it, and loses nothing up to 1."""
    found = scores_of(halves(2, 2), {3: 0.0})
    found.scores[..., 3:] = torch.tensor([0.0, 0.0, 1.0, 0.6])[:, None, None]
    answer = told(diagnosed(found, batch(halves(2, 3))))["offsets"]
    assert answer["now"]["hIoU"] == 0.0
    assert answer["best"]["hIoU"] == 1.0
    assert 0.4 <= answer["best"]["offset"] < 0.45
    assert answer["area_seen_unseen"] == 1.0
    # hIoU is 0 with no or all pixels given to the unseen class, 1 with the right half of them.
    assert answer["area_hIoU"] == pytest.approx(0.5)
    lost = next(offset for offset, value in zip(answer["offset"], answer["mIoU_seen"], strict=True) if value == 0)
    assert 1.0 <= lost < 1.1


@pytest.mark.parametrize(
    "inference",
    [WholeImage(), SlidingWindow(4, 2), MultiScale(WholeImage(), (1.0,), flip=True)],
    ids=["whole", "windows", "scales"],
)
def test_a_diagnosis_changes_no_score_and_asks_the_network_no_more(inference: Inference) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = DensePrediction(torch.rand(1, 4, 3, 3, generator=generator))
    target = torch.randint(0, 4, SIZE, generator=generator)
    target[0, 0] = WORDS.ignore_index
    painters, results = [Painter(prediction), Painter(prediction)], []
    for painter, with_diagnosis in zip(painters, (False, True), strict=True):
        segmenter = Segmenter(painter, WORDS, inference)
        evaluation = DatasetEvaluation(EvaluationTask("toy", WORDS), segmenter, "skip", diagnose=with_diagnosis)
        evaluation.update(batch(target))
        results.append(evaluation.result(RunHeader("run", "Painter", "test", 0)))
    assert painters[0].asked == painters[1].asked > 0
    assert results[0].metrics == results[1].metrics
    answer = told(results[1])
    measured = answer["scores"]["measured"]
    assert measured == {name: pytest.approx(results[1].metrics[name]) for name in measured}
    assert {name: answer["offsets"]["now"][name] for name in ("mIoU_seen", "mIoU_unseen", "hIoU")} == {
        name: pytest.approx(measured[name]) for name in ("mIoU_seen", "mIoU_unseen", "hIoU")
    }


def test_a_closed_set_is_diagnosed_in_the_classes_of_the_vocabulary() -> None:
    class Closed(Painter):
        def words(self, vocabulary: Vocabulary) -> Words:
            return Words(vocabulary, TextEmbeddings(torch.eye(2), torch.arange(2), 2), torch.tensor([2, 3]))

    scores = torch.nn.functional.one_hot(halves(0, 1), 2).movedim(-1, 0)[None].float()
    segmenter = Segmenter(Closed(DensePrediction(scores)), WORDS, WholeImage())
    similarity = name_similarity(segmenter.words)
    assert similarity.shape == (4, 4)
    assert (similarity[0] == -1).all()
    evaluation = DatasetEvaluation(EvaluationTask("toy", WORDS), segmenter, "skip", diagnose=True)
    evaluation.update(batch(halves(2, 3)))
    answer = told(evaluation.result(RunHeader("run", "Closed", "test", 0)))
    assert answer["scores"]["true_masks"]["mIoU"] == answer["offsets"]["now"]["hIoU"] == 1.0


def test_counts_survive_their_file(tmp_path: Path) -> None:
    result = diagnosed(scores_of(halves(2, 2)), batch(halves(2, 3)))
    path = tmp_path / "results/test-toy.json"
    result.write(path)
    read = DiagnosisCounts.read(tmp_path / "results/test-toy.diagnosis.npz")
    confusion = Confusion.read(tmp_path / "results/test-toy.confusion.npz").dense()
    assert diagnose(result, read, confusion) == told(result)
    assert confusion.sum() == 24
    assert "confusion" not in np.load(tmp_path / "results/test-toy.diagnosis.npz"), "one file has it"
    replace(result, diagnosis=None, confusion=None).write(path)
    assert not list(path.parent.glob("*.npz")), "counts of another test do not stay beside the result"
