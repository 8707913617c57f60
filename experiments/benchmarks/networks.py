"""Parts of networks in the form of the official code against the form of the package, gradients included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Comparison, differing, largest
from torch import Tensor

from ovsl.layers import MaskedAttentionDecoder
from ovsl.layers.mask_decoder import attended_cells
from ovsl.methods.san.side_network import MaskDecoder


def comparisons() -> Iterator[Comparison]:
    """SAN's biases at 640 pixels, and the attention masks of FC-CLIP's nine inner layers at 512."""
    yield from _san_biases()
    yield from _inner_masks()


def _san_biases() -> Iterator[Comparison]:
    torch.manual_seed(0)
    decoder = MaskDecoder(240, 256, 256, 3, 12, 1, True)
    tokens = torch.randn(1, 100 + 40 * 40, 240)

    def inference(literal: bool) -> Tensor:
        with torch.no_grad():
            return decoder(tokens, (40, 40), literal)[1]

    def training(literal: bool) -> Tensor:
        decoder.zero_grad()
        masks, biases = decoder(tokens, (40, 40), literal)
        (masks.square().mean() + biases.square().mean()).backward()
        return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])

    for name, run in (("inference", inference), ("forward and backward, one level", training)):
        yield Comparison(
            f"SAN, mask decoder of ViT-B/16 at 640, {name}",
            lambda run=run: run(True),
            lambda run=run: run(False),
            largest,
        )


def _inner_masks() -> Iterator[Comparison]:
    torch.manual_seed(0)
    decoder = MaskedAttentionDecoder(num_queries=250)
    features = torch.randn(1, 256, 128, 128)
    sizes = [(16, 16), (32, 32), (64, 64)]
    queries = torch.randn(9, 1, 250, 256)

    @torch.no_grad()
    def of_masks() -> Tensor:
        cells = [
            attended_cells(decoder.predict(one, features)[1], sizes[number % 3]) for number, one in enumerate(queries)
        ]
        return torch.cat([one.flatten() for one in cells])

    @torch.no_grad()
    def of_features() -> Tensor:
        levels = [torch.nn.functional.interpolate(features, size, mode="bilinear") for size in sizes]
        cells = [
            attended_cells(decoder.predict(one, levels[number % 3])[1], sizes[number % 3])
            for number, one in enumerate(queries)
        ]
        return torch.cat([one.flatten() for one in cells])

    yield Comparison("FC-CLIP at 512, attention masks of nine layers", of_masks, of_features, differing)
