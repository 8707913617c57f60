"""Runs in a real SLURM: preemption of uneven ranks, requeue, and what a job's status says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ovsl.cluster import JobScript
from ovsl.cluster.slurm import submit
from tests.cluster.conftest import Slurm
from tests.conftest import ROOT
from tests.runs.test_processes import command
from tests.runs.test_resume import assert_same_end

pytestmark = pytest.mark.slurm

TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
UNEVEN = ["--trainer.callbacks+=tests.faults.SlowSteps", "--trainer.callbacks+=tests.faults.UnevenProcesses"]
SAVED = ["--checkpoint.every_n_train_steps", "1"]


def job(slurm: Slurm, small: Path, run: Path, name: str, *more: str, nodes: int = 2, srun: bool = True) -> str:
    """Submit a run as `ovsl submit` would, or without srun."""
    setup = ["export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo", f"export PYTHONPATH={ROOT}", f"cd {ROOT}"]
    setup.append("export OMP_NUM_THREADS=1")
    fit = command(small, run, *(TWO if nodes == 2 else []), *SAVED, *more)
    assert fit[0] == sys.executable
    text = JobScript(fit, name, str(slurm.folder), nodes=nodes, cpus_per_task=1, setup=setup).text()
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
    slurm.call("scontrol", "update", f"JobId={number}", "StartTime=now")
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
