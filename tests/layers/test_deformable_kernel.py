"""The kernel of deformable attention says what the plain form says; without a GPU, Triton's interpreter runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ovsl.layers.deformable_attention import MultiScaleDeformableAttention, cell_centres, sample_levels

SIZES = [(2, 3), (3, 5)]
"""Levels of a map whose queries are no whole number of blocks."""


def example(device: str, channels: int, points: int) -> tuple[Any, ...]:
    """Values, references, offsets that reach beyond every border, and weights, of two images and more than a block."""
    torch.manual_seed(0)
    tokens, heads, levels = sum(h * w for h, w in SIZES), 2, len(SIZES)
    values = torch.randn(2, tokens, heads, channels, device=device)
    offsets = 6 * torch.randn(2, tokens, heads, levels, points, 2, device=device)
    weights = torch.randn(2, tokens, heads, levels * points, device=device).softmax(-1)
    leaves = values, offsets, weights.view(2, tokens, heads, levels, points)
    values, offsets, weights = (leaf.requires_grad_() for leaf in leaves)
    return values, cell_centres(SIZES, torch.device(device)), offsets, weights


def compare(device: str, channels: int, points: int) -> None:
    """Results and gradients of both forms."""
    from ovsl.layers import deformable_kernel

    inputs = example(device, channels, points)
    leaves = [leaf for leaf in inputs if leaf.requires_grad]
    expected = sample_levels(*inputs, SIZES)
    found = deformable_kernel.sample_levels(*inputs, SIZES)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for ours, plain in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def compare_compiled(device: str) -> None:
    """The kernel is part of one graph, its gradient of another."""
    from ovsl.layers import deformable_kernel

    inputs = example(device, 8, 2)
    run = torch.compile(deformable_kernel.sample_levels, fullgraph=True, backend="aot_eager", dynamic=True)
    gradients = [
        torch.autograd.grad(form(*inputs, SIZES).square().sum(), inputs[0])[0]
        for form in (run, deformable_kernel.sample_levels)
    ]
    torch.testing.assert_close(*gradients)


def test_the_interpreted_kernel_equals_the_plain_form() -> None:
    pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for Linux")
    # Whether kernels are interpreted is settled when Triton is imported.
    root = Path(__file__).parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.layers.test_deformable_kernel"]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(name: str) -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for Linux")
    if not triton.backends.backends.get("nvidia"):
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    from ovsl.layers import deformable_kernel

    kernel = getattr(deformable_kernel, name)
    constants = {"HEADS": 8, "CHANNELS": 32, "PADDED": 32, "LEVEL": 1, "LEVELS": 3, "POINTS": 1, "BLOCK": 16}
    numbers = set(deformable_kernel._SIZES)
    kinds = {a: "constexpr" if a in constants else "i32" if a in numbers else "*fp32" for a in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, kinds, {(kernel.arg_names.index(a),): v for a, v in constants.items()})
    target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    assert "ptx" in triton.compile(source, target=target).asm


def test_the_kernel_is_taken_on_a_gpu_in_float32_where_bits_may_differ() -> None:
    pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for Linux")
    from ovsl.layers import deformable_kernel

    attention = MultiScaleDeformableAttention(32, 4, len(SIZES), 4)
    attention.kernel = deformable_kernel.sample_levels
    with FakeTensorMode():
        on_gpu = torch.empty(2, 21, 4, 8, device="cuda")
        assert attention.sampling(on_gpu) is deformable_kernel.sample_levels
        assert attention.sampling(on_gpu.bfloat16()) is sample_levels
        assert attention.sampling(torch.empty(2, 21, 4, 8)) is sample_levels
        torch.use_deterministic_algorithms(True)
        try:
            assert attention.sampling(on_gpu) is sample_levels
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("channels", "points"), [(32, 4), (12, 3)])
def test_the_kernel_on_a_gpu_equals_the_plain_form(channels: int, points: int) -> None:
    compare("cuda", channels, points)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_attention_on_a_gpu_takes_the_kernel_and_says_the_same() -> None:
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(32, 4, len(SIZES), 4)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    references = cell_centres(SIZES)
    tokens = torch.randn(2, len(references), 32)
    expected = attention(tokens, tokens, references, SIZES)
    attention, tokens, references = attention.cuda(), tokens.cuda(), references.cuda()
    with torch.profiler.profile() as profiled:
        found = attention(tokens, tokens, references, SIZES)
    assert "ovsl::sample_levels" in {event.key for event in profiled.key_averages()}
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    for channels, points in ((8, 2), (6, 3)):
        compare("cpu", channels, points)
    compare_compiled("cpu")
