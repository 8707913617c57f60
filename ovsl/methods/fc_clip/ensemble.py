"""Merging the class scores of a trained classifier with those of the frozen CLIP."""

from __future__ import annotations

import torch
from torch import Tensor


def geometric_ensemble(
    in_vocabulary_logits: Tensor,
    out_of_vocabulary_logits: Tensor,
    seen: Tensor,
    seen_exponent: float = 0.4,
    unseen_exponent: float = 0.8,
    valid: Tensor | None = None,
    epsilon: float = 1e-8,
) -> Tensor:
    """Return class probabilities as a weighted geometric mean of two classifiers.

    `p_k ~ p_in,k^(1 - a_k) * p_out,k^(a_k)`, with `a_k` small where class k was seen in training (Yu et al.,
    *FC-CLIP*, NeurIPS 2023, https://arxiv.org/abs/2308.02487, equation 7). Computed on log-probabilities: a class that
    one classifier rules out to below the smallest float stays finite. The probability of no object is that of the
    trained classifier.

    Args:
        in_vocabulary_logits: Of the trained classifier, no object last: `(B, Q, C + 1)`.
        out_of_vocabulary_logits: Of the frozen CLIP: `(B, Q, C)`.
        seen: bool `(C,)`.
        seen_exponent: Weight of the frozen CLIP for seen classes (the paper's alpha).
        unseen_exponent: Its weight for all others (beta).
        valid: bool `(B, Q)`, False where the frozen CLIP's scores mean nothing and the trained classifier decides
            alone; None where they always count.
        epsilon: Added to the probabilities before they are normalised once more, as released.

    Returns:
        Probabilities `(B, Q, C + 1)`, no object last.
    """
    exponents = torch.where(seen, seen_exponent, unseen_exponent).to(in_vocabulary_logits.dtype)
    if valid is not None:
        exponents = exponents * valid.unsqueeze(-1)
    trained = in_vocabulary_logits[..., :-1].log_softmax(-1)
    frozen = out_of_vocabulary_logits.log_softmax(-1)
    classes = ((1 - exponents) * trained + exponents * frozen).softmax(-1)
    no_object = in_vocabulary_logits.softmax(-1)[..., -1:]
    probabilities = torch.cat([classes * (1 - no_object), no_object], dim=-1) + epsilon
    return probabilities / probabilities.sum(-1, keepdim=True)
