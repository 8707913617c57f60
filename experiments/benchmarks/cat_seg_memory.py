"""Peak of what CAT-Seg's tensors hold at one time, in the published sizes.

`python experiments/benchmarks/cat_seg_memory.py` counts on fake CPU tensors: nothing is computed, and the figures do
not depend on the machine. Parameters are not counted, scratch space inside of kernels neither.
"""

from __future__ import annotations

from typing import Any

import torch
from live_bytes import LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from ovsl.clip import CLIPSettings
from ovsl.methods.cat_seg import CATSeg, CATSegSizes
from ovsl.methods.cat_seg.text import TrainedTextClassifier

SIZES: dict[str, Any] = {"ViT-B-16": {}, "ViT-L-14-336": {"input_size": (336, 336), "guidance_blocks": (7, 15)}}


def build(model: str, class_chunk_size: int, max_classes: int = 256, checkpoint_activations: bool = False) -> CATSeg:
    """Build a published model with random weights."""
    return CATSeg(
        CLIPSettings(model, "random", quick_gelu=True),
        CATSegSizes(max_classes=max_classes, **SIZES[model]),
        class_chunk_size=class_chunk_size,
        checkpoint_activations=checkpoint_activations,
    )


def inference(model: str, classes: int, views: int, class_chunk_size: int, max_classes: int) -> float:
    """MiB at the peak of one forward pass."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        module = build(model, class_chunk_size, max_classes=max_classes).eval()
        images = torch.empty(views, 3, *module.network.sizes.input_size)
        text = torch.empty(classes, module.clip.embedding_dimension)
        with LiveBytes() as bytes_:
            module.network(module.tower, images, text)
    return bytes_.peak / 2**20


def training(model: str, classes: int, checkpoint_activations: bool, prompt_length: int = 13) -> float:
    """MiB at the peak of a step with one image, the text tower and the gradients included."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = build(model, 32, checkpoint_activations=checkpoint_activations).train()
        encoder = module.text_classifier
        assert isinstance(encoder, TrainedTextClassifier)
        images = torch.empty(1, 3, *module.network.sizes.input_size)
        with LiveBytes() as bytes_:
            text = encoder.run_tower(torch.empty(classes, prompt_length, dtype=torch.int64))
            logits = functional.interpolate(module.network(module.tower, images, text).logits, (384, 384))
            functional.binary_cross_entropy_with_logits(logits, torch.empty_like(logits)).backward()
    return bytes_.peak / 2**20


def main() -> None:
    """Print all figures."""
    for max_classes in (256, 0):
        for views in (1, 5):
            all_at_once, chunks = (inference("ViT-B-16", 847, views, size, max_classes) for size in (847, 32))
            kept = max_classes or "all"
            print(f"ViT-B-16, 847 classes, {kept} kept, {views} views: {all_at_once:,.0f} -> {chunks:,.0f} MiB")
    for model in SIZES:
        plain, checkpointed = (training(model, 171, recompute) for recompute in (False, True))
        print(f"{model}, training with 171 classes, one image: {plain:,.0f} -> {checkpointed:,.0f} MiB")


if __name__ == "__main__":
    main()
