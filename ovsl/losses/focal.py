"""Sigmoid focal loss on label maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, num_masks: Tensor | float, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the focal loss of independent class masks (Lin et al., arXiv 1708.02002), as ZegCLIP sums it.

    Every class map is averaged over its pixels; the maps are summed, those of absent classes included, and divided by
    the number of present masks. **Pixels without a class are not left out: they are negatives of every class.**

    The one-hot target is never built: all entries are taken as negatives, and the one positive entry of each
    labelled pixel is then exchanged.

    Args:
        logits: `(B, C, H, W)`.
        labels: int64 `(B, H, W)`; anything outside 0..C-1 is no class.
        num_masks: Divisor, see `count_masks`.
        alpha: Weight of positives; negatives have `1 - alpha`.
        gamma: Exponent of the focusing factor.

    Returns:
        Scalar.
    """
    labelled = (labels >= 0) & (labels < logits.shape[1])
    chosen = logits.gather(1, labels.where(labelled, 0)[:, None])[:, 0]
    as_negative = functional.softplus(chosen) * chosen.sigmoid() ** gamma
    as_positive = functional.softplus(-chosen) * (-chosen).sigmoid() ** gamma
    exchanged = (alpha * as_positive - (1 - alpha) * as_negative) * labelled
    total = (1 - alpha) * _SumOfNegatives.apply(logits, gamma) + exchanged.sum()
    return total / (labels[0].numel() * num_masks)


class _SumOfNegatives(torch.autograd.Function):
    """Sum of `softplus(x) * sigmoid(x) ** gamma`, with one tensor kept for the gradient and not one for each step."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gamma: float) -> Tensor:
        probabilities = logits.sigmoid()
        # log(1 + e) with the rounding of 1 + e taken back: as exact as log1p, which is slow on a CPU.
        small = logits.abs().neg_().exp_()
        rounded = 1 + small
        correction = (rounded - 1).sub_(small).div_(rounded)
        softplus = rounded.log_().sub_(correction).add_(logits.relu())
        weights = probabilities**gamma
        if ctx.needs_input_grad[0]:
            slope = torch.addcmul(probabilities, softplus, 1 - probabilities, value=gamma)
            ctx.save_for_backward(slope.mul_(weights))
        return weights.mul_(softplus).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * gradient, None
