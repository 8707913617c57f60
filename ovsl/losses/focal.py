"""Sigmoid focal loss on label maps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, num_masks: Tensor | float, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of independent class masks (Lin et al., https://arxiv.org/abs/1708.02002), as ZegCLIP sums it.

    Every class map is averaged over its pixels; the maps are summed, those of absent classes included, and divided by
    the number of present masks. **Pixels without a class are not left out: they are negatives of every class.**

    The one-hot target is never built: all entries are taken as negatives, and the one positive entry of each
    labelled pixel is then exchanged.

    Args:
        logits: ``(B, C, H, W)``.
        labels: int64 ``(B, H, W)``; anything outside 0..C-1 is no class.
        num_masks: Divisor, see :func:`ovsl.losses.dice.count_masks`.
        alpha: Weight of positives; negatives have ``1 - alpha``.
        gamma: Exponent of the focusing factor.

    Returns:
        Scalar.
    """
    labelled = (labels >= 0) & (labels < logits.shape[1])
    chosen = logits.gather(1, labels.where(labelled, 0)[:, None])[:, 0]
    total = _negative(logits, alpha, gamma).sum()
    exchanged = _positive(chosen, alpha, gamma) - _negative(chosen, alpha, gamma)
    total = total + (exchanged * labelled).sum()
    return total / (labels[0].numel() * num_masks)


def _negative(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    return (1 - alpha) * functional.softplus(logits) * logits.sigmoid() ** gamma


def _positive(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    return alpha * functional.softplus(-logits) * (-logits).sigmoid() ** gamma
