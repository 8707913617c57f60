"""Time of SAN's recognition: the shared form against the literal one.

`python experiments/benchmarks/san_recognition.py [--model ViT-B-16] [--device cuda]` prints milliseconds for the
recognition alone, at the published input of 640 x 640 pixels and with 100 queries: inference on one level, and forward
and backward on two levels as in training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from ovsl.clip import ViTTower, build_network
from ovsl.methods.san.recognition import recognize, recognize_literally

SHAPES = {"ViT-B-16": (9, (20, 20)), "ViT-L-14-336": (18, (32, 32))}
"""Shallow blocks and CLIP's grid at 640 x 640."""


def build(model: str, device: str) -> tuple[ViTTower, Tensor, Tensor]:
    """Make an image tower with random weights, tokens after the shallow blocks, and biases of two levels."""
    config = open_clip.get_model_config(model) | {"quick_gelu": True}
    tower = ViTTower(build_network(config).visual.to(device).requires_grad_(False))
    _, (height, width) = SHAPES[model]
    tokens = torch.randn(1, 1 + height * width, tower.width, device=device)
    return tower, tokens, torch.randn(2, 1, 1, tower.num_heads, 100, height * width, device=device)


def inference(form: str, tower: ViTTower, tokens: Tensor, biases: Tensor, shallow: int) -> Tensor:
    """Mask embeddings of the last level."""
    with torch.no_grad():
        return (recognize if form == "shared" else recognize_literally)(tower, tokens, biases[-1], shallow)


def training(form: str, tower: ViTTower, tokens: Tensor, biases: Tensor, shallow: int) -> Tensor:
    """Mask embeddings of both levels, with the gradients of tokens and biases."""
    tokens, biases = tokens.requires_grad_(), biases.requires_grad_()
    if form == "shared":
        embeddings = recognize(tower, tokens, torch.cat(list(biases), dim=3), shallow)
    else:
        embeddings = torch.cat([recognize_literally(tower, tokens, level, shallow) for level in biases], dim=1)
    torch.autograd.grad(embeddings.square().sum() + embeddings[..., 0].sum(), (tokens, biases))
    return embeddings.detach()


def milliseconds(function: Callable[[], Tensor], device: str, repeats: int) -> float:
    """Median time of a call, after one to warm up."""

    def call() -> float:
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    call()
    return statistics.median(call() for _ in range(repeats))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SHAPES, default="ViT-B-16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tower, tokens, biases = build(arguments.model, arguments.device)
    shallow = SHAPES[arguments.model][0]
    for name, step in (("inference, 1 level", inference), ("training, 2 levels", training)):
        results = [step(form, tower, tokens, biases, shallow) for form in ("literal", "shared")]
        difference = float((results[0] - results[1]).abs().max())
        times = [
            milliseconds(
                lambda form=form, step=step: step(form, tower, tokens, biases, shallow),
                arguments.device,
                arguments.repeats,
            )
            for form in ("literal", "shared")
        ]
        print(
            f"{arguments.model} {name}: literal {times[0]:.0f} ms, shared {times[1]:.0f} ms, "
            f"{times[0] / times[1]:.2f} times faster, largest difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
