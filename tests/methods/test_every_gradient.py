"""What data-parallel training waits for: in every step, every parameter that trains has a gradient, though it be zero.

Where one process has none, the others wait for it for ever, or the next step is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

import ovsl.methods
from ovsl.data import ToySource
from ovsl.methods import CATSeg, SegmentationModule
from ovsl.tools.models import build_model, model_parser
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT

FILES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs/methods").glob("*.yaml"))}
METHODS = [
    name
    for name, content in FILES.items()
    if getattr(ovsl.methods, content["model"]["class_path"].rpartition(".")[2]).trainable
]
WORDS = Vocabulary.load("toy", split="zero_shot")


def build(method: str, *options: str) -> SegmentationModule:
    torch.manual_seed(0)
    parser = model_parser("ovsl", "")
    module = build_model(parser, parser.parse_args(["-c", str(ROOT / f"configs/methods/{method}.yaml"), *options]))
    module.training_vocabulary = WORDS
    return module.train()


def batch(labelled: bool) -> Any:
    rows = [ToySource(seed=2).row(index) for index in range(2)]
    semantic = torch.stack([torch.from_numpy(row.semantic).long() for row in rows])  # type: ignore[arg-type]
    ids = torch.stack([torch.from_numpy(row.segments.ids).int() for row in rows])  # type: ignore[union-attr]
    return {
        "image": torch.stack([torch.from_numpy(row.image).permute(2, 0, 1) for row in rows]),
        "semantic": semantic if labelled else torch.full_like(semantic, WORDS.ignore_index),
        "segment_ids": ids if labelled else torch.zeros_like(ids),
        "segment_classes": [torch.from_numpy(row.segments.classes[: None if labelled else 0]) for row in rows],  # type: ignore[union-attr]
        "id": [row.id for row in rows],
    }


def without_gradient(module: SegmentationModule, labelled: bool) -> set[str]:
    torch.stack(list(module.losses(batch(labelled)).weighted.values())).sum().backward()
    left_out = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    return {name for name, p in module.named_parameters() if p.requires_grad and p.grad is None} - left_out


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "nothing but ignored pixels"])
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_that_trains_has_a_gradient(method: str, labelled: bool) -> None:
    assert without_gradient(build(method), labelled) == set()


@pytest.mark.parametrize("kind", ["linear", "full"])
def test_classes_that_leave_cat_seg_nothing_to_pad_train_its_padding_by_zero(kind: str) -> None:
    options = ["--model.sizes.max_classes", "31", "--model.sizes.class_attention", kind]
    module = build("cat_seg", *options)
    assert isinstance(module, CATSeg)
    assert without_gradient(module, True) == set()
    padding = [parameter for name, parameter in module.named_parameters() if "padding" in name]
    assert all(not parameter.grad.any() for parameter in padding)  # type: ignore[union-attr]
    with torch.no_grad():
        before = torch.stack(list(module.losses(batch(True)).weighted.values())).sum()
        for parameter in padding:
            parameter.add_(1)
    after = torch.stack(list(module.losses(batch(True)).weighted.values())).sum()
    torch.testing.assert_close(after.detach(), before)
