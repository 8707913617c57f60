"""How near a processor's own rate the networks come: `python experiments/benchmarks/roofline.py`.

Products are counted by torch (matrix products, convolutions, attention; not norms, resizes or sampling), gradients
included, and put against the rate at which this machine multiplies large matrices on one thread. Random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from pyramids import WORDS, network, step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ovsl.methods import SegmentationModule
from ovsl.tools.profile import RandomText

METHODS = {
    "SAN, ViT-B/16, 640": ("san/vit_b_16.yaml", 640),
    "ZegCLIP, ViT-B/16, 512": ("zegclip/coco_inductive.yaml", 512),
    "FC-CLIP, ConvNeXt-L, 512": ("fc_clip/convnext_large_coco_panoptic.yaml", 512),
}
HEADER = "| one image, 150 classes | GFLOP | seconds | GFLOP/s | share of the rate |\n|---|---:|---:|---:|---:|"


def rate(side: int = 2048, rounds: int = 5) -> float:
    """Best rate of a product of square matrices, in FLOP per second of processor time."""
    left, right = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(_seconds(partial(torch.mm, left, right)) for _ in range(rounds + 1))


def rows(best: float) -> Iterator[str]:
    """Measure inference and a training step of each network.

    Args:
        best: See `rate`.
    """
    for name, (file, size) in METHODS.items():
        model = network(file)
        for kind, run in (("inference, network", forward), ("training step", partial(step, images=1))):
            call = partial(run, model, size)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                call()
            flops, seconds = counter.get_total_flops(), _seconds(call)
            cells = f"{flops / 1e9:.0f} | {seconds:.2f} | {flops / seconds / 1e9:.0f} | {flops / seconds / best:.0%}"
            yield f"| {name}, {kind} | {cells} |"


def forward(model: SegmentationModule, size: int) -> None:
    """Run the network on one image."""
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8), RandomText(model).words(WORDS).text)


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    best = rate()
    print(f"products of 2048 x 2048 on one thread: {best / 1e9:.0f} GFLOP/s\n\n{HEADER}", flush=True)
    for row in rows(best):
        print(row, flush=True)


if __name__ == "__main__":
    main()
