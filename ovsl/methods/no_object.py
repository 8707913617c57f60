"""What mask methods share: class logits whose last column is no class."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.clip import TextEmbeddings


def merge_names(class_logits: Tensor, text: TextEmbeddings) -> Tensor:
    """Let the best synonym speak for its class.

    Args:
        class_logits: Of N names and no-object, which is last, `(B, Q, N + 1)`.
        text: Text embeddings of the N names of C classes.

    Returns:
        `(B, Q, C + 1)`, no-object last.
    """
    return torch.cat([text.per_class(class_logits[..., :-1], dim=-1), class_logits[..., -1:]], dim=-1)
