"""Runs of the command that are interrupted, damaged and resumed, on the tiny CLIP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ovsl.__main__ import main
from tests.conftest import ROOT
from tests.data.shards import write_shards

CONFIGS = ["configs/methods/patch_text.yaml", "configs/data/toy.yaml"]
EVERY_TWO = ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"]


def fit(small: Path, run: Path, *more: str) -> int:
    stacked = [argument for config in CONFIGS for argument in ("-c", str(ROOT / config))]
    return main(["fit", *stacked, "-c", str(small), "--run_dir", str(run), *EVERY_TWO, *more])


def fault(name: str, /, **arguments: object) -> list[str]:
    options = [f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()]
    return [f"--trainer.callbacks+=tests.faults.{name}", *options]


def weights(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def assert_same_end(run: Path, other: Path) -> None:
    """Weights, optimiser and schedule of two runs are equal bit for bit."""
    found, expected = (weights(folder / "checkpoints/last.ckpt") for folder in (run, other))
    assert found["global_step"] == expected["global_step"]
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor), name
    one, two = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (found, expected))
    for index, state in two.items():
        assert all(torch.equal(one[index][key], value) for key, value in state.items())
    assert found["lr_schedulers"] == expected["lr_schedulers"]


@pytest.fixture(scope="module")
def unbroken(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    assert fit(small, run, "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep_last", "2") == 0
    return run


def files(run: Path) -> list[str]:
    return sorted(file.name for file in (run / "checkpoints").iterdir())


def test_the_last_checkpoints_are_kept(unbroken: Path) -> None:
    assert files(unbroken) == ["last.ckpt", "step-3.ckpt", "step-4.ckpt"]
    assert weights(unbroken / "checkpoints/last.ckpt")["global_step"] == 4


def test_the_best_checkpoint_is_of_the_step_that_was_ranked(small: Path, tmp_path: Path) -> None:
    # Saved every 3 steps and validated every 2: no interval has to fit another.
    run = tmp_path / "run"
    options = ["--checkpoint.every_n_train_steps", "3", "--checkpoint.keep_last", "1"]
    rank = ["--checkpoint.monitor", "val/toy/pAcc", "--checkpoint.mode", "min", "--trainer.max_steps", "6"]
    assert fit(small, run, *options, *rank) == 0
    scores = json.loads((run / "checkpoints/scores.json").read_text())["scores"]
    best = min(scores, key=lambda step: (scores[step], int(step)))
    assert weights(run / "checkpoints/best.ckpt")["global_step"] == int(best)
    result = json.loads((run / "results/validate-toy.json").read_text())
    assert scores["6"] == pytest.approx(result["metrics"]["pAcc"]), "the figure of step 6 is that of its own weights"
    assert set(files(run)) == {"best.ckpt", "last.ckpt", "scores.json", f"step-{best}.ckpt", "step-6.ckpt"}


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_resume_walks_back_to_a_whole_checkpoint(
    damage: str, small: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(small, run, "--checkpoint.every_n_train_steps", "1") == 0
    newest = run / "checkpoints/step-4.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 16
    newest.write_bytes(content[:1000] if damage == "cut" else content)
    (run / "results/validate-toy.json").unlink()
    capsys.readouterr()
    assert main(["test", "-c", str(run / "config.yaml")]) == 0
    assert "step-4.ckpt is damaged" in capsys.readouterr().out
    assert fit(small, run, "--checkpoint.every_n_train_steps", "1") == 0
    output = capsys.readouterr().out
    assert "step-4.ckpt is damaged" in output
    assert "from step 3" in output
    assert_same_end(run, unbroken)
    assert json.loads((run / "results/validate-toy.json").read_text())["step"] == 4


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_in_silence(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(small, run, "--trainer.max_steps", "1") == 0
    (run / "checkpoints/step-1.ckpt").write_bytes(b"")
    assert fit(small, run) == 2
    assert "No checkpoint" in capsys.readouterr().err


def test_what_killed_processes_left_is_removed(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    orphan = run / "checkpoints/step-1.ckpt.elsewhere.1.partial"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    assert fit(small, run, "--trainer.max_steps", "1") == 0
    assert not orphan.exists()


@pytest.mark.parametrize("step", [2, 4])
def test_a_validation_that_was_cut_short_is_done_again(
    step: int, small: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="failed in a validation"):
        fit(small, run, *fault("FailInValidation", step=step))
    result = run / "results/validate-toy.json"
    assert not result.exists() or json.loads(result.read_text())["step"] < step
    assert fit(small, run, "--trainer.max_steps", str(step)) == 0
    found = json.loads(result.read_text())
    assert (found["step"], found["images"]) == (step, 10), "all of it, not what was left of it"
    capsys.readouterr()
    assert fit(small, run) == 0
    assert_same_end(run, unbroken)
    expected = json.loads((unbroken / "results/validate-toy.json").read_text())
    assert json.loads(result.read_text())["metrics"] == expected["metrics"]
    assert fit(small, run) == 0
    assert "is complete: 4 of 4 steps" in capsys.readouterr().out


def test_rows_of_files_with_workers_go_on_where_they_were_stopped(small: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    source = ["--data.train.class_path", "ovsl.data.ParquetSource", "--data.train.files", str(tmp_path / "data")]
    streamed = [*source, "--data.vocabulary", "camvid_11", "--data.split", "null", "--data.num_workers", "2"]
    assert fit(small, tmp_path / "whole", *streamed) == 0
    assert fit(small, tmp_path / "run", *streamed, *fault("SignalAtStep", step=3)) == 75
    assert fit(small, tmp_path / "run", *streamed) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert points(tmp_path / "run") == points(tmp_path / "whole"), "every step once, or twice the same"


def points(run: Path) -> set[tuple[str, int, float]]:
    """Everything that a run wrote for TensorBoard: figure, step, value."""
    log = EventAccumulator(str(run))
    log.Reload()
    return {(name, each.step, each.value) for name in log.Tags()["scalars"] for each in log.Scalars(name)}
