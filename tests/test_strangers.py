"""Weights files of strangers run no code, wherever one is named."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovsl.__main__ import main
from tests.conftest import ROOT
from tests.runs.test_resume import CONFIGS, fit

DATA = str(ROOT / "configs/data/toy.yaml")


class Malicious:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


def zipped(path: Path, mark: Path) -> None:
    torch.save({"ovsl": Malicious(mark), "state_dict": {"a": Malicious(mark)}, "global_step": 1}, path)


def legacy(path: Path, mark: Path) -> None:
    torch.save({"ovsl": Malicious(mark), "state_dict": {}}, path, _use_new_zipfile_serialization=False)


def raw(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(mark)))


@pytest.fixture(params=[zipped, legacy, raw], ids=lambda write: write.__name__)
def malicious(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path / "bad.ckpt", tmp_path / "executed")
    return tmp_path / "bad.ckpt"


def test_no_weights_file_runs_code(
    malicious: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bad = tmp_path / "run", str(malicious)
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step-1.ckpt").write_bytes(malicious.read_bytes())
    words = ["--data.images", bad, "--data.vocabulary", '["road", "sky"]']
    stack = [argument for config in CONFIGS for argument in ("-c", str(ROOT / config))]
    other = ["--run_dir", str(tmp_path / "other")]
    method = ["-c", str(ROOT / "configs/methods/proxyclip.yaml"), "-c", DATA, "-c", str(small)]
    clip = ["--model.clip.model", "ViT-B-32", "--model.clip.pretrained", bad, "--model.clip.quick_gelu", "false"]
    entries: dict[str, Callable[[], int]] = {
        "fit --ckpt_path": lambda: fit(small, tmp_path / "other", "--ckpt_path", bad),
        "fit --ckpt_path --weights_only": lambda: fit(
            small, tmp_path / "other", "--ckpt_path", bad, "--weights_only", "false"
        ),
        "fit in its run": lambda: fit(small, run),
        "initial_checkpoint": lambda: fit(small, tmp_path / "other", "--model.initial_checkpoint", bad),
        "validate": lambda: main(["validate", "-c", DATA, "-c", str(small), "--ckpt_path", bad, *other]),
        "test in its run": lambda: main(["test", *stack, "-c", str(small), "--run_dir", str(run)]),
        "predict": lambda: main(["predict", "--ckpt_path", bad, *words, *other]),
        "export": lambda: main(["export", str(tmp_path / "out.onnx"), *stack, "-c", str(small), "--ckpt_path", bad]),
        "convert": lambda: main(["convert", "zegclip", bad, str(tmp_path / "out.ckpt")]),
        "clip": lambda: main(["test", "--model", "MaskCLIP", "-c", DATA, *clip, *other]),
        "dino": lambda: main(["test", *method, "--model.dino.pretrained", bad, *other]),
    }
    for name, entry in entries.items():
        assert entry() == 2, name
        *_, last = capsys.readouterr().err.strip().splitlines()
        assert last.startswith("ovsl: "), name
        assert "weights_only" not in last, f"{name}: no advice to load it all the same"
        assert not (tmp_path / "executed").exists(), name
