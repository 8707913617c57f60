"""What checkpoints rest on: the names and shapes of their tensors, and the hash of the CLIP that they leave out.

`checkpoint_names.json` holds what the first released layout gives; a change here means that older checkpoints no
longer load. `python -m tests.methods.test_checkpoint_names` writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovsl.methods.base import SegmentationModule
from ovsl.tools.models import build_model, model_parser
from tests.conftest import ROOT, TINY_CLIP

RECORD = Path(__file__).with_name("checkpoint_names.json")
TINY_RESNET = {**TINY_CLIP, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}}
RESNET = {"clip": {"model": "tiny", "config": TINY_RESNET}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{path.stem: (path.stem, {}) for path in sorted((ROOT / "configs/methods").glob("*.yaml"))},
    "denseclip_resnet": ("denseclip", RESNET),
    "denseclip_backbone": ("denseclip", {"backbone": "mobilenetv2_100"}),
    "denseclip_without_language": ("denseclip", {"language_guidance": False, "open_vocabulary": False}),
    "fc_clip_resnet": ("fc_clip", RESNET),
    "maskclip_convnext": ("maskclip", {"clip": {"model": "toy_convnext"}}),
}


def build(name: str, tmp_path: Path) -> SegmentationModule:
    config, changes = CASES[name]
    content = yaml.safe_load((ROOT / "configs/methods" / f"{config}.yaml").read_text())
    content["model"]["init_args"] |= changes
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"model": content["model"]}))
    parser = model_parser("test", "")
    return build_model(parser, parser.parse_args(["-c", str(file)]))


def describe(module: SegmentationModule) -> dict[str, Any]:
    """Number and digest of the stored tensors' names and shapes, by the first two parts of their names; the hash."""
    frozen = {f"clip.model.{name}" for name in module.clip.frozen_names()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in frozen:
            groups[".".join(name.split(".")[:2])].append(f"{name} {list(tensor.shape)}")
    stored = {
        group: f"{len(names)} {hashlib.sha256(chr(10).join(sorted(names)).encode()).hexdigest()[:16]}"
        for group, names in sorted(groups.items())
    }
    shipped = module.clip.pretrained == "shipped"
    return {"clip": module.clip.sha256 if shipped else None, "frozen": len(frozen), "stored": stored}


@pytest.mark.parametrize("name", CASES)
def test_names_and_identity_are_those_of_older_checkpoints(name: str, tmp_path: Path) -> None:
    assert describe(build(name, tmp_path)) == json.loads(RECORD.read_text())[name]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {name: describe(build(name, Path(folder))) for name in CASES}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
