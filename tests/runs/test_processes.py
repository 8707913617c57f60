"""Several processes that are to stop agree on a step; random moments of death lose nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ovsl.runs.directory import RunDirectory
from tests.conftest import ROOT
from tests.runs.test_resume import CONFIGS, EVERY_TWO, assert_same_end, fault, fit

pytestmark = pytest.mark.slow

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]


def command(small: Path, run: Path, *more: str) -> list[str]:
    stacked = [argument for config in CONFIGS for argument in ("-c", str(ROOT / config))]
    own = ["-c", str(small), "--run_dir", str(run), *EVERY_TWO, *more]
    return [sys.executable, "-m", "ovsl", "fit", *stacked, *own]


def start(small: Path, run: Path, *more: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}
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


@pytest.mark.parametrize("where", ["batch", "validation"])
def test_a_process_that_hangs_is_named_and_ends_the_run(where: str, small: Path, tmp_path: Path) -> None:
    options = ["--watchdog.patience", "6", *fault("HangAtStep", step=2, where=where)]
    process = start(small, tmp_path / "run", *TWO, *options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, None), output
    behind, _, waiting = re.findall("No process has gone on for 6 seconds: (.*)", output)[0].partition("Waiting: ")
    assert "rank 1 (process" in behind
    assert "rank 0" not in behind
    assert "rank 0" in waiting
    assert "in _hang" in output, "the stack says where"
    assert fit(small, tmp_path / "run", "--data.batch_size", "2") == 0, "the directory is free, and the run goes on"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others_in_one_sentence(rank: int, small: Path, tmp_path: Path) -> None:
    """Started one by one, as a cluster does: nobody is the parent of the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [
        start(small, tmp_path / "run", *TWO, *fault("DieAtStep", step=2, rank=rank), **meeting, LOCAL_RANK=str(local))
        for local in range(2)
    ]
    output, _ = processes[1 - rank].communicate(timeout=300)
    assert processes[rank].wait(60) == -signal.SIGKILL
    assert processes[1 - rank].returncode == 1, output
    first, last = output.strip().splitlines()[-2:]
    # Where it runs is known unless it died before it was heard of.
    lost = rf"ovsl: The connection to another process was lost: rank {rank}( \(.*\))? gives no sign of life"
    assert re.match(lost, first), first
    assert last == "ovsl: Another process of this run was lost, and its own output says why; the same command goes on."


def test_a_data_worker_that_dies_is_one_sentence_and_loses_nothing(small: Path, tmp_path: Path) -> None:
    options = ["--data.num_workers", "2", "--checkpoint.every_n_train_steps", "1"]
    process = start(small, tmp_path / "run", *options, *fault("KillWorker", step=2))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert output.strip().splitlines()[-1].startswith("ovsl: A process that prepares data has died (DataLoader worker")
    assert fit(small, tmp_path / "run", "--data.num_workers", "0") == 0
    assert fit(small, tmp_path / "whole") == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_three_processes_score_several_datasets_as_one_does(small: Path, tmp_path: Path) -> None:
    """Ten images and two: neither divides by three, and one process has none of the second dataset."""
    settings = yaml.safe_load(small.read_text())
    evaluation = settings["data"]["init_args"]["evaluation"]
    few = {"class_path": "ovsl.data.ToySource", "init_args": {"seed": 5, "length": 2}}
    evaluation["few"] = {"vocabulary": "toy", "split": "zero_shot", "test": few}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings))
    files = [argument for config in ("methods/maskclip", "data/toy") for argument in ("-c", f"ovsl:{config}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for processes in ("1", "3"):
        several = ["--trainer.devices", processes, *(["--trainer.strategy", "ddp"] if processes == "3" else [])]
        where = ["-c", str(tmp_path / "two.yaml"), "--run_dir", str(tmp_path / "runs" / processes)]
        test = [sys.executable, "-m", "ovsl", "test", *files, *where, *several]
        subprocess.run(test, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=400)
    for name in ("toy", "few"):
        one, three = (
            json.loads((tmp_path / f"runs/{processes}/results/test-{name}.json").read_text()) for processes in "13"
        )
        assert three["images"] == (10 if name == "toy" else 2)
        for result in (one, three):
            del result["created"], result["run"]
        assert three == one


KILLS = int(os.environ.get("OVSL_KILLS", "8"))
"""How many times a run is killed; more are worth a night."""


def test_kills_at_random_moments_end_in_the_same_weights(small: Path, tmp_path: Path) -> None:
    longer = ["--trainer.max_steps", "40"]
    assert fit(small, tmp_path / "whole", *longer) == 0
    moments, run, struck = random.Random(0), tmp_path / "run", []
    for number in range(KILLS):
        process = start(small, run, *longer, "--checkpoint.every_n_train_steps", "1")
        # One in four at any time from the start on, the others some steps later than the last one.
        goal = max(RunDirectory(run).saved_steps(), default=0) + moments.randint(1, 4)
        while number % 4 and process.poll() is None and max(RunDirectory(run).saved_steps(), default=0) < goal:
            time.sleep(0.01)
        deadline = time.monotonic() + moments.uniform(0, 1 if number % 4 else 20)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        struck.append(process.returncode == -signal.SIGKILL)
    print(f"{KILLS} kills tried, {sum(struck)} struck a living run")
    assert sum(struck) > KILLS // 3
    assert fit(small, run, *longer, "--checkpoint.every_n_train_steps", "1") == 0
    assert_same_end(run, tmp_path / "whole")
    assert json.loads((run / "results/validate-toy.json").read_text())["step"] == 40
    assert not list(run.rglob("*.partial"))
