"""Runs in a real SLURM: preemption of uneven ranks, requeue, and what a job's status says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovsl.__main__ import main
from ovsl.cluster import JobScript
from ovsl.cluster.slurm import submit
from tests.cluster.conftest import Slurm
from tests.conftest import ROOT
from tests.runs.test_processes import command
from tests.runs.test_resume import CONFIGS, EVERY_TWO, assert_same_end, fault

pytestmark = pytest.mark.slurm

TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
UNEVEN = ["--trainer.callbacks+=tests.faults.SlowSteps", "--trainer.callbacks+=tests.faults.UnevenProcesses"]
SAVED = ["--checkpoint.every_n_train_steps", "1"]


SETUP = [
    "export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1",
    f"export PYTHONPATH={ROOT} PATH={Path(sys.executable).parent}:$PATH",
]


def job(
    slurm: Slurm, small: Path, run: Path, name: str, *more: str, nodes: int = 2, srun: bool = True, **options: Any
) -> str:
    """Submit a run as `ovsl submit` would, or without srun."""
    fit = command(small, run, *(TWO if nodes == 2 else []), *SAVED, *more)
    assert fit[0] == sys.executable
    setup = [*SETUP, f"cd {ROOT}"]
    text = JobScript(fit, name, str(slurm.folder), nodes=nodes, cpus_per_task=1, setup=setup, **options).text()
    return submit(text if srun else text.replace("exec srun --kill-on-bad-exit=1 ", "exec "))


def test_uneven_ranks_are_preempted_queued_again_and_end_as_if_nothing_had_been(
    slurm: Slurm, small: Path, tmp_path: Path
) -> None:
    whole = job(slurm, small, tmp_path / "whole", "whole")
    slurm.wait(lambda: slurm.field(whole, "JobState") == "COMPLETED", "the uninterrupted run")
    run = tmp_path / "run"
    number = job(slurm, small, run, "preempted", *UNEVEN)
    slurm.wait(lambda: (run / "checkpoints/step-1.ckpt").exists(), "the first step")
    # Twice in quick succession: it is queued again once.
    slurm.call("scancel", "--signal=USR1", number)
    slurm.call("scancel", "--signal=USR1", number)
    slurm.wait(lambda: slurm.field(number, "JobState") == "PENDING", "the requeue")
    assert slurm.field(number, "Restarts") == "1"
    slurm.wait(lambda: slurm.field(number, "JobState") == "COMPLETED", "the resumed run")
    output = next(slurm.folder.glob(f"preempted-{number}.out")).read_text()
    assert "Stopped by SIGUSR1" in output
    assert "Resuming" in output
    assert not list(run.glob("hpc_ckpt_*"))
    assert_same_end(run, tmp_path / "whole")
    assert len(json.loads((run / "run.json").read_text())["starts"]) == 2


def test_a_cancelled_job_is_no_success_and_loses_no_step(slurm: Slurm, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = job(slurm, small, run, "cancelled", UNEVEN[0], nodes=1)
    slurm.wait(lambda: (run / "checkpoints/step-1.ckpt").exists(), "the first step")
    slurm.call("scancel", "--signal=TERM", number)
    slurm.wait(lambda: slurm.field(number, "JobState") == "FAILED", "the end")
    assert slurm.field(number, "ExitCode").startswith("75:")
    assert (run / "checkpoints/last.ckpt").readlink() != Path("step-4.ckpt")


def test_a_command_that_srun_did_not_start_does_not_wait_for_the_others(
    slurm: Slurm, small: Path, tmp_path: Path
) -> None:
    number = job(slurm, small, tmp_path / "run", "alone", srun=False)
    slurm.wait(lambda: slurm.field(number, "JobState") == "FAILED", "the refusal")
    assert slurm.field(number, "ExitCode").startswith("2:")
    assert "not started by srun" in (slurm.folder / f"alone-{number}.out").read_text()


def test_a_time_limit_is_announced_and_the_job_queued_again(slurm: Slurm, small: Path, tmp_path: Path) -> None:
    # SLURM announces it up to a minute early: the run lasts longer than the limit.
    run, longer = tmp_path / "run", ["--trainer.max_steps", "400", UNEVEN[0]]
    number = job(slurm, small, run, "limited", *longer, nodes=1, time="00:03:00", grace=90)
    slurm.wait(lambda: (run / "checkpoints/step-1.ckpt").exists(), "the first step")
    slurm.wait(lambda: slurm.field(number, "JobState") == "PENDING", "the requeue before the limit")
    assert slurm.field(number, "Restarts") == "1"
    slurm.call("scancel", number)
    output = (slurm.folder / f"limited-{number}.out").read_text()
    assert f"Stopped by SIGUSR1 after step {saved(run)}" in output
    assert f"Job {number} is queued again" in output


def test_a_crashed_rank_ends_the_job(slurm: Slurm, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = job(slurm, small, run, "crashed", *fault("DieAtStep", step=2))
    slurm.wait(lambda: slurm.field(number, "JobState") == "FAILED", "the end")
    assert not slurm.field(number, "ExitCode").startswith("0:")
    assert saved(run) == 2


def test_a_rank_that_hangs_ends_the_job_and_is_named(slurm: Slurm, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = job(slurm, small, run, "hanging", "--watchdog.patience", "8", *fault("HangAtStep", step=2))
    slurm.wait(lambda: slurm.field(number, "JobState") == "FAILED", "the end")
    output = (slurm.folder / f"hanging-{number}.out").read_text()
    assert "No process has gone on for 8 seconds: rank 1" in output
    assert saved(run) == 2


def test_a_study_is_an_array(
    slurm: Slurm, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"one": {"options": {"trainer.max_steps": 1}}, "two": {"options": {"trainer.max_steps": 2}}}
    configs = [*(str(ROOT / config) for config in CONFIGS), str(small)]
    every = dict(zip((option.removeprefix("--") for option in EVERY_TWO[::2]), EVERY_TWO[1::2], strict=True))
    study = {"runs": "runs", "configs": configs, "options": every, "axes": {"rows": rows}, "seeds": [0]}
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump(study))
    setup = ["--job.setup", json.dumps([*SETUP, f"cd {tmp_path}"]), "--job.cpus_per_task", "1"]
    assert main(["study", "study.yaml", "--slurm", *setup]) == 0
    number = capsys.readouterr().out.split("are job ")[1].split(";")[0]
    slurm.wait(lambda: not slurm.call("squeue", "-h", "-j", number, "-o", "%t").strip(), "the tasks")
    outputs = "".join(file.read_text() for file in Path("runs/logs").glob("*.out"))
    assert saved(Path("runs/one-seed0")) == 1, outputs
    assert saved(Path("runs/two-seed0")) == 2, outputs
    assert main(["study", "study.yaml", "--slurm", *setup]) == 2
    assert "All 2 runs" in capsys.readouterr().err


def saved(run: Path) -> int:
    """Step of the newest checkpoint."""
    return int((run / "checkpoints/last.ckpt").readlink().stem.removeprefix("step-"))
