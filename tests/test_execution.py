"""Settings that change how networks run, and nothing that they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from ovsl.callbacks import Execution
from ovsl.callbacks.execution import store_in_bfloat16
from ovsl.errors import InputError
from ovsl.inference import MaskPrediction
from ovsl.methods import SegmentationModule
from ovsl.tools.models import build_model, model_parser
from ovsl.tools.profile import RandomText, tiles
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT

SIZES = ((96, 96), (96, 128), (160, 64), (128, 96), (64, 160))
WORDS = Vocabulary.from_words([f"class {number}" for number in range(7)])


def built(method: str) -> SegmentationModule:
    torch.manual_seed(0)
    parser = model_parser("ovsl", "")
    return build_model(parser, parser.parse_args(["-c", str(ROOT / f"configs/methods/{method}.yaml")])).eval()


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (1, 3, height, width), dtype=torch.uint8)


def trainer(precision: Any = "32-true") -> Trainer:
    return Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("method", ["zegclip", "san", "fc_clip"])
def test_networks_compile_as_a_whole_and_for_all_sizes(method: str) -> None:
    """No graph break; one size, then one side variable, then both: nothing is compiled for a fourth size.

    SAN's pooling of biases is compiled for the sizes at hand, and so again for every other one.
    """
    model, graphs = built(method), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    networks = list(model.networks())
    for network in networks:
        network.compile(backend=backend, fullgraph=True)
    text, compiled = RandomText(model).words(WORDS).text, []
    with torch.no_grad():
        for size in SIZES:
            images = picture(*size)
            model(images, text, *tiles(model, images))
            compiled.append(len(graphs))
    assert len(networks) <= compiled[0]
    assert method == "san" or compiled[-1] == compiled[2] <= 3 * compiled[0]


def test_names_and_values_of_weights_stay() -> None:
    model = built("fc_clip")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, text = picture(64, 96), RandomText(model).words(WORDS).text
    with torch.no_grad():
        expected = model(images, text)
        Execution(compile=True, backend="eager", channels_last=True).setup(trainer(), model, "test")
        found = model(images, text)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.clip.model.visual.trunk.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(found, MaskPrediction)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["zegclip", "san", "fc_clip"])
def test_a_tower_in_bfloat16_says_what_mixed_precision_says(method: str) -> None:
    model = built(method)
    images, text = picture(64, 96), RandomText(model).words(WORDS).text
    frozen = [p for p in model.clip.model.visual.parameters() if not p.requires_grad]
    size = sum(p.nbytes for p in frozen)
    scores = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores.append(model(images, text).semantic_scores((64, 96)))
        store_in_bfloat16(model.clip)
        scores.append(model(images, text).semantic_scores((64, 96)))
    assert torch.equal(*scores)
    assert sum(p.nbytes for p in frozen) < 0.6 * size
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_tower_in_bfloat16_is_not_run_in_float32() -> None:
    model = built("zegclip")
    for precision, evaluation in (("32-true", True), ("bf16-mixed", False)):
        model.mixed_precision_evaluation = evaluation
        with pytest.raises(InputError, match=r"needs trainer\.precision bf16-mixed"):
            Execution(bfloat16_tower=True).setup(trainer(precision), model, "fit")
