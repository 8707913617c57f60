"""Runs that are asked to stop, meet a NaN, or end before their last step."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ovsl.__main__ import main
from ovsl.cluster import StopRequest
from tests.runs.test_resume import assert_same_end, fault, fit, weights

EACH = ["--checkpoint.every_n_train_steps", "1"]


@pytest.fixture(scope="module")
def unbroken(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    assert fit(small, run) == 0
    return run


def all_finite(path: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in weights(path)["state_dict"].values())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_loses_no_step_and_is_no_success(
    name: str, small: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    assert fit(small, run, *fault("SignalAtStep", step=1, name=name)) == 75
    assert f"Stopped by {name} after step 1" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (run / "owner.json").exists()
    assert fit(small, run) == 0
    assert "from step 1" in capsys.readouterr().out
    assert_same_end(run, unbroken)


def test_what_is_drawn_at_random_is_drawn_again(small: Path, tmp_path: Path) -> None:
    noise = ["--trainer.callbacks+=tests.faults.NoisyGradient"]
    assert fit(small, tmp_path / "whole", *noise) == 0
    assert fit(small, tmp_path / "run", *noise, *fault("SignalAtStep", step=3)) == 75
    assert fit(small, tmp_path / "run", *noise) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_signal_in_a_validation_leaves_it_to_be_done_again(small: Path, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(small, run, *fault("SignalAtStep", step=4, in_validation="true")) == 75
    assert weights(run / "checkpoints/last.ckpt")["global_step"] == 4
    assert json.loads((run / "results/validate-toy.json").read_text())["step"] == 2
    assert fit(small, run) == 0
    assert json.loads((run / "results/validate-toy.json").read_text())["step"] == 4
    assert_same_end(run, unbroken)


def test_a_second_interrupt_is_answered_at_once() -> None:
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_request_to_requeue_is_not_forgotten_over_a_later_signal() -> None:
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal == signal.SIGUSR1


def test_a_nan_stops_the_run_and_names_the_images(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(small, run, *EACH, *fault("NaNGradient", step=2)) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("ovsl: The loss or its gradient is not finite after step 2, in the batch of ")
    assert len(message.split("batch of ")[1].split(":")[0].split(", ")) == 4
    assert weights(run / "checkpoints/last.ckpt")["global_step"] == 2
    assert all_finite(run / "checkpoints/last.ckpt")


def test_no_result_comes_from_weights_that_are_not_numbers(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(small, run, *fault("NaNWeight")) == 3
    assert "The weights are not finite" in capsys.readouterr().err
    assert not list((run / "results").glob("*.json"))
    assert all_finite(run / "checkpoints/last.ckpt")
    checkpoint: dict[str, Any] = weights(run / "checkpoints/last.ckpt")
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = float("nan")
    torch.save(checkpoint, run / "nan.ckpt")
    assert main(["test", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "nan.ckpt")]) == 3
    assert not list((run / "results").glob("*.json"))


def test_early_stopping_is_an_end(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/toy/pAcc"]
    stopping += ["--trainer.callbacks.mode=max", "--trainer.callbacks.divergence_threshold=2"]
    assert fit(small, run, *stopping) == 0
    assert "early stopping ended it at step 2 of 4" in capsys.readouterr().out
    assert fit(small, run, *stopping) == 0
    assert "is complete: early stopping ended it at step 2" in capsys.readouterr().out
    assert fit(small, run) == 0, "without it, the run goes on"
    assert weights(run / "checkpoints/last.ckpt")["global_step"] == 4


def test_a_time_limit_of_the_trainer_is_an_end(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, slow = tmp_path / "run", "--trainer.callbacks+=tests.faults.SlowSteps"
    limited = [slow, "--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "1000"]
    assert fit(small, run, *limited) == 0
    step = weights(run / "checkpoints/last.ckpt")["global_step"]
    assert 1 <= step < 1000
    assert f"trainer.max_time ended it at step {step} of 1000" in capsys.readouterr().out
    assert fit(small, run, *limited) == 0
    assert f"is complete: trainer.max_time ended it at step {step}" in capsys.readouterr().out
    more = ["--trainer.max_time", "01:00:00:00", "--trainer.max_steps", str(step + 1)]
    assert fit(small, run, slow, *more) == 0, "with more time, the run goes on"
    assert weights(run / "checkpoints/last.ckpt")["global_step"] == step + 1
