"""The figure that is logged beside a loss."""

from __future__ import annotations

from torch import Tensor


def pixel_accuracy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Return the share of labelled pixels whose best class is right, in percent; 100 when no pixel has a label.

    Args:
        logits: `(B, C, H, W)`.
        labels: int64 `(B, H, W)`.
        ignore_index: Label of pixels that do not count.
    """
    labelled = labels != ignore_index
    wrong = (logits.argmax(dim=1) != labels) & labelled
    return 100 - 100 * wrong.sum() / labelled.sum().clamp(min=1)
