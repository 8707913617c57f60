"""What every method that trains holds to in a training step: on an accelerator it hardly waits, and it is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ovsl.data.batches import TrainingBatch
from ovsl.methods import SegmentationModule
from ovsl.vocabulary import Vocabulary
from tests.test_execution import CONFIGURATIONS, built, compiled
from tests.waits import Waits

TRAINED = [name for name in CONFIGURATIONS if built(name).trainable]
MATCHED = ["cpu in losses/targets.py", "cpu in losses/matcher.py"]
WAITS = {"san": MATCHED, "fc_clip": MATCHED, "clip_dinoiser": ["index in methods/clip_dinoiser/teachers.py"]}
"""Where the host waits: for the number of masks and for the costs of all levels and images; for the colours that stand
in for DINO in the toy world. Other methods never do."""


def ready(method: str) -> SegmentationModule:
    """A method of which some classes of the toy world are unseen."""
    model = built(method).train()
    model.training_vocabulary = Vocabulary.load("toy", "zero_shot")
    return model


def batch(seed: int = 0) -> TrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    areas = torch.randint(40, (2, 4, 4), generator=generator)
    content: Any = {
        "image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator),
        "semantic": areas.repeat_interleave(16, 1).repeat_interleave(16, 2),
        "id": ["a", "b"],
    }
    content["semantic"][:, :4] = 255
    return content


@pytest.mark.parametrize("method", TRAINED)
def test_a_step_hardly_waits_for_an_accelerator(method: str) -> None:
    model = ready(method)
    model.losses(batch())  # embeds the words
    with Waits() as waits:
        torch.stack(list(model.losses(batch(1)).weighted.values())).sum().backward()
    assert [place.rsplit(":", 1)[0] for place in waits.places] == WAITS.get(method, [])


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_networks_in_training_are_one_graph_and_are_compiled_once(method: str) -> None:
    model = ready(method)
    graphs, counts = compiled(model), []
    for seed in range(2):
        model.losses(batch(seed))
        counts.append(len(graphs))
    assert counts == [len(list(model.networks()))] * 2
