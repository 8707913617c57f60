"""Every method shows the text encoder the names that it is told, and its classes keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ovsl.clip import FrozenCLIP
from ovsl.tools.models import build_model, model_parser
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT

METHODS = sorted((ROOT / "configs/methods").glob("*.yaml"))
OPTION = ["--model.class_names", "{toy: {water: [grass, sand]}}"]


@pytest.mark.parametrize("config", METHODS, ids=lambda path: path.stem)
def test_a_method_shows_other_names(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    tokenize = FrozenCLIP.tokenize

    def spy(self: FrozenCLIP, texts: Sequence[str]) -> torch.Tensor:
        prompts.extend(texts)
        return tokenize(self, texts)

    monkeypatch.setattr(FrozenCLIP, "tokenize", spy)
    parser = model_parser("test", "")
    module = build_model(parser, parser.parse_args(["-c", str(config), *OPTION]))
    vocabulary = Vocabulary.load("toy")
    with torch.no_grad():
        words = module.words(vocabulary)
    assert words.vocabulary.classes == vocabulary.classes
    assert "water" in vocabulary.classes
    assert not any("water" in prompt for prompt in prompts)
    assert sum("grass" in prompt for prompt in prompts) > sum("brick" in prompt for prompt in prompts) > 0
