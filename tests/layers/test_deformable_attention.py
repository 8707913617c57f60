import math

import torch

from ovsl.layers import (
    MaskedAttentionDecoder,
    MultiScaleDeformableAttention,
    PixelDecoder,
    pool_by_masks,
    sine_positions,
)
from ovsl.layers.deformable_attention import cell_centres

SIZES = [(2, 3), (4, 6), (8, 12)]


def bilinear(level: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Value of a (C, H, W) map at pixel coordinates, zero outside."""
    height, width = level.shape[1:]
    left, top = math.floor(x), math.floor(y)
    value = torch.zeros(level.shape[0], dtype=level.dtype)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            value = value + level[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return value


def test_deformable_attention_equals_the_equation_point_by_point() -> None:
    torch.manual_seed(0)
    heads, points, width = 2, 3, 8
    attention = MultiScaleDeformableAttention(width, heads, len(SIZES), points).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    length = sum(h * w for h, w in SIZES)
    query, value = torch.randn(1, 5, width).double(), torch.randn(1, length, width).double()
    references = torch.rand(5, 2).double()
    found = attention(query, value, references, SIZES)[0]

    values = attention.value_projection(value)[0].split([h * w for h, w in SIZES])
    offsets = attention.sampling_offsets(query)[0].view(5, heads, len(SIZES), points, 2)
    weights = attention.attention_weights(query)[0].view(5, heads, -1).softmax(-1).view(5, heads, len(SIZES), points)
    expected = torch.zeros(5, heads, width // heads).double()
    for q in range(5):
        for h in range(heads):
            for number, (height, columns) in enumerate(SIZES):
                level = values[number].T.view(heads, width // heads, height, columns)[h]
                for p in range(points):
                    dx, dy = offsets[q, h, number, p].tolist()
                    x = references[q, 0].item() * columns + dx - 0.5
                    y = references[q, 1].item() * height + dy - 0.5
                    expected[q, h] += weights[q, h, number, p] * bilinear(level, x, y)
    torch.testing.assert_close(found, attention.output_projection(expected.flatten(1)))


def test_sampling_starts_in_a_ring_that_grows_by_a_pixel_per_point() -> None:
    attention = MultiScaleDeformableAttention(32, 8, 3, 4)
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    # The larger component of a head's direction is 1, so point p lies p + 1 pixels away along it.
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5.0).expand(8, 3, 4))
    assert torch.allclose(offsets[0, 0, 0], torch.tensor([1.0, 0.0]), atol=1e-6)
    assert torch.allclose(offsets[3, 1, 1], torch.tensor([-2.0, 2.0]), atol=1e-6)


def test_references_are_cell_centres_in_row_order() -> None:
    centres = cell_centres([(2, 3)])
    assert torch.allclose(centres[1], torch.tensor([0.5, 0.25]))
    assert torch.allclose(centres[3], torch.tensor([1 / 6, 0.75]))


def test_sine_positions_follow_their_definition() -> None:
    height, width, channels = 3, 5, 16
    positions = sine_positions(height, width, channels).view(height, width, channels)
    half = channels // 2
    for row, column, k in ((0, 0, 0), (2, 4, 3), (1, 3, 6)):
        period = 10000 ** (2 * (k // 2) / half)
        wave = math.cos if k % 2 else math.sin
        y, x = (row + 1) / (height + 1e-6) * 2 * math.pi, (column + 1) / (width + 1e-6) * 2 * math.pi
        assert math.isclose(positions[row, column, k].item(), wave(y / period), abs_tol=1e-5)
        assert math.isclose(positions[row, column, half + k].item(), wave(x / period), abs_tol=1e-5)


def test_decoders_compile_without_a_graph_break() -> None:
    torch.manual_seed(0)
    pixel = PixelDecoder((8, 12, 16, 24), 32, 32, 4, 2, 1, 16)
    decoder = MaskedAttentionDecoder(32, 32, 5, 4, 3, 16)
    features = [torch.randn(1, c, 64 // s, 96 // s) for c, s in ((8, 4), (12, 8), (16, 16), (24, 32))]

    def run(maps: list[torch.Tensor]) -> torch.Tensor:
        return decoder(*pixel(maps))[-1][1]

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), run(features), rtol=1e-4, atol=1e-4)


def test_pixel_decoder_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    pixel = PixelDecoder((8, 12, 16, 24), 32, 32, 4, 2, 1, 16)
    features = [torch.randn(1, c, 64 // s, 96 // s) for c, s in ((8, 4), (12, 8), (16, 16), (24, 32))]
    expected, _ = pixel(features)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = pixel(features)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_queries_see_nothing_but_their_masks() -> None:
    torch.manual_seed(0)
    layer = MaskedAttentionDecoder(32, 32, 5, 4, 1, 16).layers[0]
    queries, places = torch.randn(1, 5, 32), torch.randn(5, 32)
    source, positions = torch.randn(1, 6, 32), torch.randn(6, 32)
    attended = torch.ones(1, 5, 6, dtype=torch.bool)
    attended[:, :, 4:] = False
    before = layer(queries, places, source, positions, attended)
    source[:, 4:] += 10
    assert torch.equal(layer(queries, places, source, positions, attended), before)
    source[:, :4] += 1
    assert not torch.allclose(layer(queries, places, source, positions, attended), before)


def test_a_query_with_an_empty_mask_looks_everywhere() -> None:
    torch.manual_seed(0)
    decoder = MaskedAttentionDecoder(32, 32, 5, 4, 3, 16)
    # No mask logit above zero anywhere: every query would be left without a single key.
    torch.nn.init.zeros_(decoder.mask_embedding[-1].weight)
    torch.nn.init.constant_(decoder.mask_embedding[-1].bias, -1.0)
    levels = [torch.randn(1, 32, 2 * 2**i, 3 * 2**i) for i in range(3)]
    predictions = decoder(torch.ones(1, 32, 16, 24), levels)
    assert all((masks < 0).all() and queries.isfinite().all() for queries, masks in predictions)


def test_pooling_averages_inside_the_mask_and_gives_masks_no_gradient() -> None:
    features = torch.arange(8.0).view(1, 2, 2, 2).requires_grad_()
    masks = torch.tensor([[[[1.0, -1], [2, -3]], [[-1, -1], [-1, -1]]]]).requires_grad_()
    pooled = pool_by_masks(features, masks)
    assert torch.allclose(pooled, torch.tensor([[[1.0, 5.0], [0.0, 0.0]]]))
    pooled.sum().backward()
    assert masks.grad is None
    assert features.grad is not None
    assert torch.allclose(features.grad[0, 0], torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
