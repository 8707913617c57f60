"""Peak of what the tensors of a training step hold in ZegCLIP and SAN, with and without `checkpoint_activations`.

`python experiments/benchmarks/training_memory.py` counts on fake CPU tensors: network forward and backward, parameters
not counted, scratch space inside of kernels neither.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from ovsl.clip import CLIPSettings
from ovsl.methods import SAN, ZegCLIP
from ovsl.methods.san import SANSizes

LARGE = SANSizes(num_shallow_blocks=18, fusion={0: 0, 1: 6, 2: 12, 3: 18})


def zegclip(again: bool, classes: int = 171) -> Callable[[], Tensor]:
    """Two images of 512 pixels, masks brought to their size."""
    module = ZegCLIP(CLIPSettings("ViT-B-16", "random", quick_gelu=True), checkpoint_activations=again).train()
    images, text = torch.empty(2, 3, 512, 512), torch.empty(classes, 512)

    def loss() -> Tensor:
        logits = module.network(images, text).mask_logits
        return functional.interpolate(logits, (512, 512), mode="bilinear").sigmoid().mean()

    return loss


def san(model: str, sizes: SANSizes, clip_scale: float, again: bool, classes: int = 171) -> Callable[[], Tensor]:
    """Two images of 640 pixels, masks and classes of both supervised blocks."""
    clip = CLIPSettings(model, "random", quick_gelu=True)
    with mock.patch.object(torch.nn.init, "trunc_normal_"):  # looks at its numbers, of which there are none
        module = SAN(clip, sizes, clip_scale, checkpoint_activations=again).train()
    images, text = torch.empty(2, 3, 640, 640), torch.empty(classes + 1, module.clip.embedding_dimension)

    def loss() -> Tensor:
        last = module.network(images, text, auxiliary=True)
        levels = [*last.auxiliary, last]
        return torch.stack(
            [one.mask_logits.sigmoid().mean() + one.class_logits.square().mean() for one in levels]
        ).sum()

    return loss


STEPS = {
    "ZegCLIP, ViT-B/16, 2 images of 512": zegclip,
    "SAN, ViT-B/16, 2 images of 640": lambda again: san("ViT-B-16", SANSizes(), 0.5, again),
    "SAN, ViT-L/14, 2 images of 640": lambda again: san("ViT-L-14-336", LARGE, 0.7, again),
}


def main() -> None:
    """Print a row for each network."""
    print("| training step | all activations kept | `checkpoint_activations` |\n|---|---:|---:|")
    for name, step in STEPS.items():
        peaks = []
        for again in (False, True):
            with FakeTensorMode(allow_non_fake_inputs=True):
                loss = step(again)
                with LiveBytes() as live:
                    loss().backward()
            peaks.append(live.peak / 2**20)
        print(f"| {name} | {peaks[0]:,.0f} MiB | {peaks[1]:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
