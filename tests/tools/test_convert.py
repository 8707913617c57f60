import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ovsl import progress
from ovsl.clip import CLIPSettings
from ovsl.errors import InputError
from ovsl.methods.zegclip import ZegCLIP, ZegCLIPSizes
from ovsl.tools import convert as tool
from tests.golden.harness import SHIPPED

RELEASE = SHIPPED / "zegclip" / "mini_inductive" / "weights.safetensors"
CONFIG = """
model:
  class_path: ZegCLIP
  init_args:
    clip:
      model: tiny
      quick_gelu: true
      config:
        embed_dim: 16
        vision_cfg: {layers: 3, width: 24, head_width: 8, patch_size: 4, image_size: 16}
        text_cfg: {context_length: 77, vocab_size: 49408, width: 8, heads: 1, layers: 1}
    sizes: {num_prompts: 2, num_layers: 2, num_heads: 2, feed_forward: 64}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def arguments(config: Path, *more: str, file: Path = RELEASE) -> list[str]:
    return ["zegclip", str(file), str(config.with_name("out.ckpt")), "-c", str(config), *more]


def test_a_converted_release_loads_into_a_new_process_and_says_what_it_was_trained_on(config: Path) -> None:
    split = ["--vocabulary", "pascal_voc_20", "--split", "zero_shot_15_5"]
    out = tool.main(arguments(config, "--clip_from_release", *split))
    checkpoint = torch.load(out, weights_only=True)
    settings = checkpoint["ovsl"]["settings"]["init_args"]
    assert settings["schedule"]["init_args"]["warmup_steps"] == 1500  # whole settings, defaults included
    clip = {key: settings["clip"][key] for key in ("model", "pretrained", "quick_gelu", "config")}
    module = ZegCLIP(clip=CLIPSettings(**clip), sizes=ZegCLIPSizes(2, None, 2, 2, 64))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    release = load_file(RELEASE)
    prompts = release["backbone.deep_prompt_embeddings"].float()
    assert torch.equal(module.network.encoder.deep_prompt_embeddings, prompts)
    assert torch.equal(module.tower.visual.proj, release["backbone.proj"].float())
    assert module.training_vocabulary is not None
    assert len(module.training_vocabulary.seen_indices) == 15


def test_the_release_may_be_a_pickle_with_a_state_dict(config: Path) -> None:
    file = config.with_name("release.pth")
    torch.save({"meta": {"CLASSES": ("cat",)}, "state_dict": load_file(RELEASE)}, file)
    assert tool.main(arguments(config, file=file)).is_file()


def test_python_objects_are_unpickled_only_on_request(config: Path) -> None:
    file = config.with_name("release.pth")
    torch.save({"meta": Path("anything"), "state_dict": load_file(RELEASE)}, file)
    with pytest.raises(InputError, match="--trust"):
        tool.main(arguments(config, file=file))
    assert tool.main(arguments(config, "--trust", file=file)).is_file()


def test_a_long_conversion_says_what_it_does(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = tool.convert

    def slow(*args: Any) -> dict[str, Any]:
        time.sleep(0.3)
        return convert(*args)

    monkeypatch.setattr(tool, "convert", slow)
    monkeypatch.setattr(progress, "SILENT", 0.05)
    tool.main(arguments(config))
    said = capsys.readouterr().err
    assert f"Converting {len(load_file(RELEASE))} tensors: 0 s" in said.splitlines()
    assert not any(ord(letter) < 32 and letter != "\n" for letter in said)


def test_nothing_is_overwritten(config: Path) -> None:
    config.with_name("out.ckpt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        tool.main(arguments(config))
    assert config.with_name("out.ckpt").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense", str(RELEASE), "out.ckpt"], "known: .*zegclip"),
        (["zegclip", "absent.pth", "out.ckpt"], "no file"),
        (["zegclip", str(RELEASE), "out.ckpt"], "-c CONFIG"),
    ],
)
def test_mistakes_are_named(args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        tool.main(args)
    assert not Path("out.ckpt").exists()
