import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ovsl.inference import MaskPrediction
from ovsl.inference.instance import instances
from ovsl.inference.panoptic import panoptic_maps
from ovsl.methods.fc_clip.ensemble import geometric_ensemble

THINGS = (True, False, True, False, False)


def predict(seed: int, num_queries: int = 12, batch: int = 1, sharpness: float = 4.0) -> MaskPrediction:
    generator = torch.Generator().manual_seed(seed)
    coarse = sharpness * torch.randn(batch, num_queries, 4, 5, generator=generator)
    logits = functional.interpolate(coarse, (16, 24), mode="bilinear")
    scores = (2 * torch.randn(batch, num_queries, len(THINGS) + 1, generator=generator)).softmax(-1)
    return MaskPrediction(logits, scores[..., :-1], scores[..., -1], padded_size=(64, 96))


def full_masks(prediction: MaskPrediction, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    masks = functional.interpolate(prediction.mask_logits, prediction.padded_size, mode="bilinear")
    return functional.interpolate(masks[..., : size[0], : size[1]], original, mode="bilinear")[0]


def literal_panoptic(
    prediction: MaskPrediction, size: tuple[int, int], original: tuple[int, int], threshold: float, overlap: float
) -> tuple[Tensor, list[int]]:
    """The rule, query by query."""
    probabilities = torch.cat([prediction.class_scores, prediction.no_object_scores[..., None]], -1)[0]
    scores, labels = probabilities.max(-1)
    masks = full_masks(prediction, size, original).sigmoid()
    kept = [q for q in range(len(scores)) if labels[q] < len(THINGS) and scores[q] > threshold]
    segments, classes, stuff = torch.zeros(original, dtype=torch.int64), [], {}
    if not kept:
        return segments, classes
    owner = (scores[kept][:, None, None] * masks[kept]).argmax(0)
    for rank, query in enumerate(kept):
        owned, own = owner == rank, masks[query] >= 0.5
        written = owned & own
        if not owned.any() or not own.any() or not written.any() or owned.sum() / own.sum() < overlap:
            continue
        label = int(labels[query])
        if not THINGS[label] and label in stuff:
            segments[written] = stuff[label]
            continue
        classes.append(label)
        segments[written] = len(classes)
        if not THINGS[label]:
            stuff[label] = len(classes)
    return segments, classes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "overlap"), [(0.0, 0.3), (0.3, 0.8), (0.99, 0.5)])
def test_panoptic_maps_follow_the_rule_query_by_query(seed: int, threshold: float, overlap: float) -> None:
    prediction, size, original = predict(seed), (50, 90), (75, 133)
    expected, classes = literal_panoptic(prediction, size, original, threshold, overlap)
    for chunk in (1, 5, 100):
        found = panoptic_maps(prediction, size, original, THINGS, threshold, overlap, chunk)[0]
        assert torch.equal(found.segment_ids, expected)
        assert found.classes.tolist() == classes


def test_stuff_of_one_class_is_one_segment_and_things_are_several() -> None:
    logits = torch.full((1, 4, 8, 8), -5.0)
    for query, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))):
        logits[0, query, rows] = 5.0
    scores = torch.full((1, 4, 5), 0.01)
    for query, label in enumerate((1, 0, 1, 0)):
        scores[0, query, label] = 0.9
    found = panoptic_maps(MaskPrediction(logits, scores), (8, 8), (8, 8), THINGS)[0]
    assert found.classes.tolist() == [1, 0, 0]
    assert found.segment_ids[:, 0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]


def test_images_of_a_batch_do_not_mix() -> None:
    prediction = predict(0, batch=2)
    both = panoptic_maps(prediction, (60, 96), (60, 96), THINGS)
    second = MaskPrediction(
        prediction.mask_logits[1:], prediction.class_scores[1:], prediction.no_object_scores[1:], (64, 96)
    )
    assert torch.equal(both[1].segment_ids, panoptic_maps(second, (60, 96), (60, 96), THINGS)[0].segment_ids)


def test_instances_are_the_best_pairs_scored_by_mask_certainty() -> None:
    prediction, size, original = predict(3), (50, 90), (75, 133)
    found = instances(prediction, size, original, THINGS, max_instances=20, query_chunk_size=3)[0]
    masks = full_masks(prediction, size, original)
    scores = prediction.class_scores[0]
    best = sorted(((float(scores[q, c]), q, c) for q in range(12) for c in range(5)), reverse=True)[:20]
    expected = [(s, q, c) for s, q, c in best if THINGS[c]]
    assert len(found.labels) == len(expected) < 20
    for row, (score, query, label) in enumerate(expected):
        inside = masks[query] > 0
        certainty = masks[query].sigmoid()[inside].sum() / (inside.sum() + 1e-6)
        assert found.labels[row] == label
        assert torch.equal(found.masks[row], inside)
        torch.testing.assert_close(found.scores[row], score * certainty)


def test_no_thing_gives_no_instance() -> None:
    found = instances(predict(0), (50, 90), (20, 30), (False,) * 5)[0]
    assert found.masks.shape == (0, 20, 30)


def test_ensemble_is_the_weighted_geometric_mean() -> None:
    torch.manual_seed(0)
    trained, frozen = torch.randn(2, 4, 6), torch.randn(2, 4, 5)
    seen = torch.tensor([True, False, True, False, False])
    valid = torch.tensor([[True, True, False, True]] * 2)
    found = geometric_ensemble(trained, frozen, seen, 0.4, 0.8, valid)
    exponents = torch.where(seen, 0.4, 0.8) * valid[..., None]
    product = trained[..., :5].softmax(-1) ** (1 - exponents) * frozen.softmax(-1) ** exponents
    void = trained.softmax(-1)[..., 5:]
    expected = torch.cat([product / product.sum(-1, keepdim=True) * (1 - void), void], -1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[:, 2], trained[:, 2].softmax(-1), rtol=1e-5, atol=1e-6)


def test_ensemble_survives_a_class_that_one_classifier_rules_out() -> None:
    trained, frozen = torch.tensor([[[200.0, -200.0, 0.0]]]), torch.tensor([[[-200.0, 200.0]]])
    for seen in ([True, False], [False, True]):
        found = geometric_ensemble(trained, frozen, torch.tensor(seen))
        assert found.isfinite().all()
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 1))
