"""Small things that many tests need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ovsl.clip import CLIPSettings, FrozenCLIP, build_clip

ROOT = Path(__file__).parent.parent

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""A CLIP with random weights that runs in milliseconds; it has the real tokenizer."""

# Tests run side by side on few cores; one thread each is faster than many threads that wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def tiny_clip() -> FrozenCLIP:
    torch.manual_seed(0)
    return build_clip("tiny", config=TINY_CLIP)


@pytest.fixture
def tiny_settings() -> CLIPSettings:
    return CLIPSettings("tiny", config=TINY_CLIP)


@pytest.fixture
def data_folder() -> Path:
    """Folder with real photos: `OVSL_DATA`, which holds `camvid/`."""
    folder = Path(os.environ.get("OVSL_DATA", "data"))
    if not (folder / "camvid").is_dir():
        pytest.skip("no CamVid shards: set OVSL_DATA to the folder that holds camvid/")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """Settings that make every run small: the tiny CLIP, few scenes, few steps."""
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    clip = {"model": "tiny", "config": TINY_CLIP}
    data = {
        "init_args": {
            "train": {"init_args": {"length": 16}},
            "evaluation": {
                "toy": {
                    "vocabulary": "toy",
                    "split": "zero_shot",
                    **{
                        stage: {"class_path": "ovsl.data.ToySource", "init_args": {"seed": seed, "length": 10}}
                        for stage, seed in (("validation", 1), ("test", 2))
                    },
                }
            },
            "batch_size": 4,
            "num_workers": 0,
        }
    }
    trainer = {"accelerator": "cpu", "max_steps": 4, "enable_progress_bar": False, "log_every_n_steps": 1}
    content = {"model": {"init_args": {"clip": clip}}, "data": data, "trainer": trainer, "pictures": {"count": 2}}
    path.write_text(yaml.safe_dump(content))
    return path
