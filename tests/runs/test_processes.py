"""Several processes that are to stop agree on a step; random moments of death lose nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runs.test_resume import CONFIGS, EVERY_TWO, assert_same_end, fault, fit

pytestmark = pytest.mark.slow

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]


def command(small: Path, run: Path, *more: str) -> list[str]:
    stacked = [argument for config in CONFIGS for argument in ("-c", str(ROOT / config))]
    own = ["-c", str(small), "--run_dir", str(run), *EVERY_TWO, *more]
    return [sys.executable, "-m", "ovsl", "fit", *stacked, *own]


def start(small: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command(small, run, *more),
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_uneven_processes_stop_at_one_step(rank: int, small: Path, tmp_path: Path) -> None:
    whole = start(small, tmp_path / "whole", *TWO)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    uneven = ["--trainer.callbacks+=tests.faults.UnevenProcesses"]
    stopped = start(small, tmp_path / "run", *TWO, *uneven, *fault("SignalAtStep", step=1, name="SIGUSR1", rank=rank))
    output, _ = stopped.communicate(timeout=300)
    assert stopped.returncode == 75, output
    assert "Stopped by SIGUSR1 after step 1" in output
    resumed = start(small, tmp_path / "run", *TWO)
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert "from step 1" in output
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_signal_to_the_whole_group_does_not_take_the_workers_first(small: Path, tmp_path: Path) -> None:
    slow = ["--trainer.callbacks+=tests.faults.SlowSteps", "--data.num_workers", "2"]
    process = start(small, tmp_path / "run", *slow, "--checkpoint.every_n_train_steps", "1")
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/checkpoints/step-1.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert fit(small, tmp_path / "run", "--data.num_workers", "2") == 0
    assert fit(small, tmp_path / "whole") == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_second_run_in_a_living_directory_is_refused(small: Path, tmp_path: Path) -> None:
    slow = start(small, tmp_path / "run", "--trainer.callbacks+=tests.faults.SlowSteps")
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/owner.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    other = start(small, tmp_path / "run", "--model.temperature", "5")
    output, _ = other.communicate(timeout=300)
    assert slow.wait(timeout=300) == 0
    assert other.returncode == 2, output
    assert json.loads((tmp_path / "run/run.json").read_text())["identity"]["model.temperature"] == 20.0


def test_kills_at_random_moments_end_in_the_same_weights(small: Path, tmp_path: Path) -> None:
    assert fit(small, tmp_path / "whole") == 0
    moments = random.Random(0)
    for _ in range(6):
        process = start(small, tmp_path / "run", "--checkpoint.every_n_train_steps", "1")
        deadline = time.monotonic() + moments.uniform(0, 40)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    assert fit(small, tmp_path / "run", "--checkpoint.every_n_train_steps", "1") == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run/results/validate-toy.json").read_text())["step"] == 4
    assert not list((tmp_path / "run").rglob("*.partial"))
