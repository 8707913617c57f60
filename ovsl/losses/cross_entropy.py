"""Cross entropy of class logits with ignored pixels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Average = Literal["labelled", "all"]


def pixel_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, average: Average = "labelled") -> Tensor:
    """Return the mean cross entropy over pixels; zero, with a gradient of zero, when no pixel has a label.

    Args:
        logits: `(B, C, H, W)`.
        labels: int64 `(B, H, W)`.
        ignore_index: Label of pixels that add nothing.
        average: `labelled` divides by the number of labelled pixels, `all` by that of all pixels (the rule of
            MMSegmentation up to 0.x, in which DenseCLIP was published).
    """
    total = functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    count = labels.numel() if average == "all" else (labels != ignore_index).sum().clamp(min=1)
    return total / count
