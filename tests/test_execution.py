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

SIZES = ((256, 320), (320, 224), (224, 352), (250, 301))
"""Both sides change at once; the last is no multiple of anything."""
CONFIGURATIONS = sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml"))
WORDS = Vocabulary.from_words([f"class {number}" for number in range(7)])


def built(method: str) -> SegmentationModule:
    torch.manual_seed(0)
    parser = model_parser("ovsl", "")
    return build_model(parser, parser.parse_args(["-c", str(ROOT / f"configs/methods/{method}.yaml")])).eval()


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (1, 3, height, width), dtype=torch.uint8)


def trainer(precision: Any = "32-true") -> Trainer:
    return Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)


def compiled(model: SegmentationModule, fullgraph: bool = True) -> list[torch.fx.GraphModule]:
    """Compile the networks of a model; what is returned collects their graphs. A graph break is an error."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for network in model.networks():
        network.compile(backend=backend, fullgraph=fullgraph)
    return graphs


@pytest.mark.parametrize("method", [name for name in CONFIGURATIONS if name != "corrclip"])
def test_networks_compile_as_a_whole_and_for_all_sizes(method: str) -> None:
    """No graph break; once for the first size, once with variable sides, once where a size has to be rounded.

    Images are large enough for the convolutions of CPUs not to change their kind with the size.
    """
    model = built(method)
    graphs, counts = compiled(model), []
    text = RandomText(model).words(WORDS).text
    with torch.no_grad():
        for size in SIZES:
            images = picture(*size)
            model(images, text, *tiles(model, images))
            counts.append(len(graphs))
    networks = len(list(model.networks()))
    assert counts[0] == networks
    assert counts[1] <= 2 * networks
    assert counts[-1] <= 3 * networks


def test_regions_cut_a_compiled_network_where_they_are_read_from_the_image() -> None:
    """CorrCLIP merges regions on the host: five cuts, and no more pieces for a third size than for two."""
    model = built("corrclip")
    graphs, counts = compiled(model, fullgraph=False), []
    text = RandomText(model).words(WORDS).text
    with torch.no_grad():
        for size in SIZES[:3]:
            images = picture(*size)
            model(images, text, *tiles(model, images))
            counts.append(len(graphs))
    assert counts == [6, 12, 12]


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
