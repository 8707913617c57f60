"""The settings of ZegCLIP as runs of the command, on a tiny CLIP with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ovsl.__main__ import main
from tests.conftest import ROOT, TINY_CLIP


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    toy = {"class_path": "ovsl.data.ToySource", "init_args": {"length": 8, "size": 64}}
    data = {
        "train": toy,
        "evaluation": {"toy": {"vocabulary": "toy", "split": "zero_shot", "validation": toy, "test": toy}},
        "train_transform": {"crop_size": 64},
        "batch_size": 2,
        "num_workers": 0,
    }
    trainer = {"max_steps": 2, "limit_val_batches": 0, "enable_progress_bar": False, "log_every_n_steps": 1}
    model = {"clip": {"model": "tiny", "config": TINY_CLIP}, "sizes": {"num_prompts": 2, "feed_forward": 32}}
    content = {"model": {"init_args": model}, "data": {"init_args": data}, "trainer": trainer}
    path.write_text(yaml.safe_dump(content))
    return path


def fit(small: Path, run: Path, *more: str) -> int:
    configs = ["configs/methods/zegclip.yaml", "configs/data/toy.yaml", "configs/trainer/cpu.yaml"]
    stacked = [argument for config in configs for argument in ("-c", str(ROOT / config))]
    return main(["fit", *stacked, "-c", str(small), "--run_dir", str(run), *more])


def checkpoint(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return content


@pytest.fixture(scope="module")
def inductive(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "inductive"
    assert fit(small, run) == 0
    return run


def test_self_training_goes_on_from_an_inductive_checkpoint(
    small: Path, inductive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--model.initial_checkpoint", str(inductive / "checkpoints/last.ckpt"), "--model.self_training_start", "0"]
    assert fit(small, tmp_path / "refused", *start) == 2
    assert "ignore_unseen" in capsys.readouterr().err
    # With a learning rate of zero the weights that come out are those that went in.
    run = tmp_path / "transductive"
    still = ["--model.optimizer.lr", "0", "--data.ignore_unseen", "false"]
    assert fit(small, run, *start, *still) == 0
    found, expected = checkpoint(run)["state_dict"], checkpoint(inductive)["state_dict"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert main(["test", "-c", str(run / "config.yaml"), "--run_dir", str(run)]) == 0


def test_an_initial_checkpoint_that_does_not_exist_is_named(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(small, tmp_path / "run", "--model.initial_checkpoint", str(tmp_path / "absent.ckpt")) == 2
    assert "absent.ckpt" in capsys.readouterr().err
