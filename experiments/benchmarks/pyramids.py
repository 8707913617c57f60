"""LSeg, DenseCLIP and CLIP-lightweight at their published sizes, in the form of the official code and in that of here.

Networks have random weights; what differs between the forms is exchanged in place: how pixels are matched with texts,
how the head of a Semantic FPN brings its levels together, and how patches are told the class token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import Comparison, differing, largest
from torch import Tensor, nn
from torch.nn import functional

from ovsl.inference.semantic import whole_image_labels
from ovsl.layers import SemanticFPNHead, score_map
from ovsl.methods import SegmentationModule
from ovsl.tools.models import build_model, forget_clip_weights, model_parser
from ovsl.tools.profile import RandomText
from ovsl.vocabulary import Vocabulary

EXPERIMENTS = Path(__file__).parents[1]
WORDS = Vocabulary.from_words([f"class {number}" for number in range(150)])
METHODS = {
    "LSeg, ViT-L/16": ("lseg/ade20k_vit_l_16.yaml", 480, {"backbone_pretrained": "false", "matching": "float32"}),
    "DenseCLIP, RN50": ("denseclip/rn50.yaml", 512, {}),
    "CLIP-lightweight, MobileNetV2": ("clip_lightweight/ade20k.yaml", 512, {"backbone_pretrained": "false"}),
}


@cache
def network(file: str, **options: str) -> SegmentationModule:
    """Build the method of an experiment with random weights."""
    torch.manual_seed(0)
    parser = model_parser("", "")
    settings = [f"--model.{name}={value}" for name, value in options.items()]
    config = parser.parse_args(["-c", str(EXPERIMENTS / file), *settings])
    forget_clip_weights(config)
    return build_model(parser, config)


def embed_then_compare(maps: Tensor, embedding: nn.Module, text: Tensor) -> Tensor:
    """Give every cell its embedding, and every embedding its length, before it is compared."""
    return score_map(embedding(maps), text)


def enlarge_then_add(head: SemanticFPNHead, levels: Sequence[Tensor]) -> Tensor:
    """Double every level to the size of the finest before they are added."""
    size, total = levels[0].shape[-2:], None
    for index, (branch, level) in enumerate(zip(head.branches, levels, strict=True)):
        for block in branch.children():
            level = block(level)
            if index:
                level = functional.interpolate(level, scale_factor=2.0, mode="bilinear", align_corners=False)
        if level.shape[-2:] != size:
            level = functional.interpolate(level, size=size, mode="bilinear", align_corners=False)
        total = level if total is None else total + level
    assert total is not None
    return head.dropout(total)


def join_then_project(tokens: Tensor, projection: nn.Module, activation: nn.Module) -> Tensor:
    """Put the class token beside every patch."""
    patches = tokens[:, 1:]
    told: Tensor = activation(projection(torch.cat([patches, tokens[:, :1].expand_as(patches)], dim=-1)))
    return told


def before(run: Callable[[], Any]) -> Any:
    """Run in the forms before."""
    with ExitStack() as exchanged:
        for place, form in (
            ("ovsl.methods.lseg.network.embedded_score_map", embed_then_compare),
            ("ovsl.methods.clip_lightweight.network.embedded_score_map", embed_then_compare),
            ("ovsl.methods.lseg.network.tell_class_token", join_then_project),
            ("ovsl.layers.semantic_fpn.SemanticFPNHead.features", enlarge_then_add),
        ):
            exchanged.enter_context(mock.patch(place, form))
        return run()


def inference(model: SegmentationModule, size: int) -> Tensor:
    """Label one image."""
    torch.manual_seed(1)
    image = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
    text = RandomText(model).words(WORDS).text
    with torch.no_grad():
        return whole_image_labels(model.eval()(image, text), (size, size), (size, size))


def step(model: SegmentationModule, size: int, images: int, accuracy: bool = False) -> Tensor:
    """Compute losses and gradients of images of sixteen areas; with the figure that is logged, or without."""
    torch.manual_seed(1)
    image = torch.randint(256, (images, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(150, (images, 4, 4)).repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    text = RandomText(model).words(WORDS).text
    model.train().zero_grad()
    model.training_vocabulary = WORDS
    with mock.patch.object(type(model.training_classes), "text", return_value=text):
        losses = model.losses({"image": image, "semantic": labels, "id": [str(number) for number in range(images)]})
    total = torch.stack(list(losses.weighted.values())).sum()
    if accuracy:
        for compute in losses.figures.values():
            compute()
    total.backward()
    return total.detach()


def comparisons() -> Iterator[Comparison]:
    """One image with 150 classes; then a training step of two, of the light ones."""
    for name, (file, size, options) in METHODS.items():
        model = network(file, **options)
        yield Comparison(
            f"{name} at {size}, 150 classes, inference",
            lambda model=model, size=size: before(lambda: inference(model, size)),
            lambda model=model, size=size: inference(model, size),
            differing,
            rounds=2,
        )
    for name, (file, size, options) in list(METHODS.items())[1:]:
        model = network(file, **options)
        yield Comparison(
            f"{name} at {size}, 150 classes, training step, batch 2",
            lambda model=model, size=size: before(lambda: step(model, size, 2, accuracy=True)),
            lambda model=model, size=size: step(model, size, 2),
            largest,
            rounds=1,
        )
