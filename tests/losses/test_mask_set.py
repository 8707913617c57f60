import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from ovsl.losses import HungarianMatcher, MaskSetCriterion, MaskTargets, point_sample, uncertain_points
from tests.golden.replay import ReplayedDraws


@pytest.fixture
def batch():
    """Three images: several masks, more masks than queries, none at all."""
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(3, 4, 9, generator=generator)
    mask_logits = torch.randn(3, 4, 6, 8, generator=generator)
    labels = [torch.tensor([1, 5]), torch.tensor([0, 2, 3, 4, 6, 7]), torch.tensor([], dtype=torch.int64)]
    masks = [(torch.rand(len(image), 24, 32, generator=generator) > 0.6) for image in labels]
    return class_logits, mask_logits, labels, masks


def pairs_one_image_at_a_time(class_logits, mask_logits, labels, masks, points, num_points):
    """The matching cost written out for single pairs."""
    cost = torch.zeros(len(mask_logits), len(labels))
    logits = point_sample(mask_logits[None], points)[0]
    truth = point_sample(masks[None].float(), points)[0] if len(labels) else torch.zeros(0, num_points)
    for q in range(len(mask_logits)):
        for g, label in enumerate(labels):
            p, t = logits[q].sigmoid(), truth[g]
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            cross_entropy = functional.binary_cross_entropy_with_logits(logits[q], t)
            cost[q, g] = -2 * class_logits[q].softmax(0)[label] + 5 * cross_entropy + 5 * dice
    return linear_sum_assignment(cost.numpy())


def test_batched_matching_equals_one_image_at_a_time(batch):
    class_logits, mask_logits, labels, masks = batch
    targets = MaskTargets(torch.cat(labels), torch.cat(masks), tuple(map(len, labels)))
    points = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(1))
    levels = [(class_logits, mask_logits), (class_logits.flip(1), mask_logits.flip(1))]
    matches, flipped = HungarianMatcher(num_points=40)(levels, targets, ReplayedDraws([points, points]))
    first = 0
    for image in range(3):
        query, target = pairs_one_image_at_a_time(
            class_logits[image], mask_logits[image], labels[image], masks[image], points[image : image + 1], 40
        )
        mine = matches.image == image
        assert matches.query[mine].tolist() == query.tolist()
        assert (matches.target[mine] - first).tolist() == target.tolist()
        first += len(labels[image])
    assert matches.image.bincount(minlength=3).tolist() == [2, 4, 0]
    pairs, others = (set(zip(m.query.tolist(), m.target.tolist(), strict=True)) for m in (matches, flipped))
    assert {(3 - query, target) for query, target in others} == pairs


def test_losses_are_those_of_each_level_and_repeat_with_a_seed(batch):
    class_logits, mask_logits, labels, masks = batch
    targets = MaskTargets(torch.cat(labels), torch.cat(masks), tuple(map(len, labels)))
    criterion = MaskSetCriterion(HungarianMatcher(num_points=40), num_points=40)
    levels = [(class_logits * scale, mask_logits * scale) for scale in (0.5, 2.0, 1.0)]

    def run(levels):
        generator = torch.Generator().manual_seed(7)
        return criterion(levels, targets, lambda *shape, device: torch.rand(*shape, generator=generator))

    losses = run(levels)
    assert list(losses) == [f"loss_{kind}{suffix}" for suffix in ("", "_0", "_1") for kind in ("ce", "mask", "dice")]
    assert all(torch.equal(value, losses[name]) for name, value in run(levels).items())
    # The last level comes first: its matching does not depend on how many levels are supervised.
    assert torch.equal(run(levels[-1:])["loss_ce"], losses["loss_ce"])


def test_perfect_predictions_cost_nothing_and_wrong_classes_do():
    labels, grid = torch.tensor([2, 0]), torch.zeros(2, 16, 16, dtype=torch.bool)
    grid[0, :, :8] = grid[1, :, 8:] = True
    mask_logits = torch.where(grid, 30.0, -30.0)[None]
    class_logits = torch.full((1, 2, 4), -30.0)
    class_logits[0, [0, 1], labels] = 30.0
    torch.manual_seed(0)
    # Uniform points: the uncertain ones lie on the border, where a sampled target is soft and no logit can be right.
    criterion = MaskSetCriterion(HungarianMatcher(num_points=200), num_points=2000, importance_sample_ratio=0.0)
    targets = MaskTargets(labels, grid, (len(labels),))
    losses = criterion([(class_logits, mask_logits)], targets)
    assert losses["loss_ce"] < 1e-6
    assert losses["loss_dice"] < 0.3
    swapped = criterion([(class_logits.flip(1), mask_logits)], targets)
    assert swapped["loss_ce"] > 1


def test_a_batch_without_targets_trains_the_no_object_class_alone():
    class_logits, mask_logits = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 6, 6, requires_grad=True)
    targets = MaskTargets.from_semantic(torch.full((2, 24, 24), 255), num_classes=3)
    assert targets.counts == (0, 0)
    losses = MaskSetCriterion(HungarianMatcher(num_points=16), num_points=16)([(class_logits, mask_logits)], targets)
    sum(losses.values()).backward()
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    assert mask_logits.grad.abs().max() == 0
    assert (class_logits.grad[..., :3] > 0).all()
    assert (class_logits.grad[..., 3] < 0).all()


def test_semantic_targets_hold_one_mask_for_each_class_present():
    semantic = torch.tensor([[[2, 2, 255], [0, 0, 2]], [[255, 255, 255], [1, 1, 1]]])
    targets = MaskTargets.from_semantic(semantic, num_classes=3)
    assert targets.labels.tolist() == [0, 2, 1]
    assert targets.counts == (2, 1)
    assert targets.masks.int().tolist() == [
        [[0, 0, 0], [1, 1, 0]],
        [[1, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [1, 1, 1]],
    ]


def test_uncertain_points_prefer_the_border_and_end_with_fresh_ones():
    torch.manual_seed(0)
    columns = torch.linspace(-8, 8, 32).expand(1, 32, 32)
    candidates = 0.1 + 0.8 * torch.rand(1, 300, 2)  # away from the edge, where sampling fades to zero
    fresh = torch.full((1, 25, 2), 0.99)
    points = uncertain_points(columns, 100, draw=ReplayedDraws([candidates, fresh]))
    assert torch.equal(points[:, 75:], fresh)
    distance = (points[0, :75, 0] - 0.5).abs()
    left_out = (candidates[0, :, 0] - 0.5).abs().sort().values[75]
    assert (distance <= left_out).all()
