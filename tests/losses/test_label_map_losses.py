"""Focal and dice loss on label maps against their definitions with one-hot masks."""

import pytest
import torch
from torch.nn import functional

from ovsl.losses import count_masks, dice_loss, mask_areas, sigmoid_focal_loss

CLASSES = 4


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, CLASSES, 5, 7, generator=generator)
    labels = torch.randint(CLASSES - 1, (3, 5, 7), generator=generator)  # the last class is absent
    labels[0, :3] = 255
    labels[1] = 255  # an image without labels
    return logits.requires_grad_(), labels


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return (labels[:, None] == torch.arange(CLASSES).view(-1, 1, 1)).float()


def test_focal_loss_is_the_sum_over_all_maps_of_the_mean_over_pixels(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = pair
    target = one_hot(labels)
    probability = logits.sigmoid()
    true_side = probability * target + (1 - probability) * (1 - target)
    alpha = 0.25 * target + 0.75 * (1 - target)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = (alpha * entropy * (1 - true_side) ** 2).mean((2, 3)).sum() / 5
    found = sigmoid_focal_loss(logits, labels, 5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_focal_loss_counts_unlabelled_pixels_as_negatives(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = pair
    gradient = torch.autograd.grad(sigmoid_focal_loss(logits, labels, 1), logits)[0]
    assert (gradient[1] > 0).all()


def test_dice_loss_is_over_present_masks_only(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = pair
    target, probability = one_hot(labels), logits.sigmoid()
    dice = 1 - (2 * (probability * target).sum((2, 3)) + 1) / (probability + target).sum((2, 3)).add(1)
    expected = dice[target.sum((2, 3)) > 0].sum() / 5
    found = dice_loss(logits, labels, 5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_no_label_at_all_gives_no_dice_loss_and_finite_gradients(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = pair
    nothing = torch.full_like(labels, 255)
    assert count_masks(nothing, CLASSES) == 1
    loss = dice_loss(logits, nothing, count_masks(nothing, CLASSES))
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_masks_are_counted_by_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, labels = pair
    areas = mask_areas(labels, CLASSES)
    torch.testing.assert_close(areas, one_hot(labels).sum((2, 3)).long())
    assert count_masks(labels, CLASSES) == (areas > 0).sum() == 6


@pytest.mark.parametrize("value", [-30.0, 30.0, 200.0])
def test_saturated_logits_stay_finite(value: float) -> None:
    logits = torch.full((1, CLASSES, 2, 2), value, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.zeros(1, 2, 2, dtype=torch.int64), 1)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_focal_loss_is_exact_where_sigmoids_saturate() -> None:
    logits = torch.linspace(-25, 60, 961).view(1, 1, 31, 31).requires_grad_()
    precise = logits.detach().double().requires_grad_()
    nothing = torch.full((1, 31, 31), 255)
    found = torch.autograd.grad(sigmoid_focal_loss(logits, nothing, 1, gamma=1.5), logits)[0]
    expected = 0.75 * (functional.softplus(precise, threshold=80) * precise.sigmoid() ** 1.5).mean()
    gradient = torch.autograd.grad(expected, precise)[0]
    torch.testing.assert_close(found.double(), gradient, rtol=1e-5, atol=0)
    # What autograd cannot see: the hand-written derivative against finite differences.
    labels = torch.randint(3, (1, 2, 3), generator=torch.Generator().manual_seed(0))
    values = torch.linspace(-3, 3, 18, dtype=torch.float64).view(1, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: sigmoid_focal_loss(logits, labels, 2), values)
