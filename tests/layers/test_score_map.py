"""Cosines of cells and texts without the embeddings of the cells."""

from __future__ import annotations

import torch
from torch import nn

from ovsl.layers import embedded_score_map, score_map


def test_texts_through_the_embedding_are_as_near_as_cells_through_it() -> None:
    torch.manual_seed(0)
    embedding = nn.Conv2d(6, 16, 1).double()
    features = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    for text in (torch.randn(4, 16).double(), torch.randn(2, 4, 16).double()):
        found, gradients = [], []
        for form in (embedded_score_map(features, embedding, text), score_map(embedding(features), text)):
            found.append(form)
            gradients.append(torch.autograd.grad(form.square().sum(), list(embedding.parameters())))
        torch.testing.assert_close(*found)
        for ours, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, plain)


def test_cells_that_say_nothing_have_finite_gradients() -> None:
    embedding = nn.Conv2d(6, 16, 1)
    nn.init.zeros_(embedding.bias)  # type: ignore[arg-type]
    features = torch.zeros(1, 6, 2, 2, requires_grad=True)
    scores = embedded_score_map(features, embedding, torch.randn(3, 16))
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros_like(scores))
    assert features.grad is not None
    assert features.grad.isfinite().all()
