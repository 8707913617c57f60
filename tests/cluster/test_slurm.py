"""Job scripts, and starts in a job that would hang."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ovsl.__main__ import main
from ovsl.cluster import JobScript, check_launch, job_id, requeue
from ovsl.cluster.slurm import first_node
from ovsl.errors import InputError
from tests.conftest import ROOT

STEP = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0", "MASTER_ADDR": "127.0.0.1"}


def test_a_right_start_is_let_through() -> None:
    check_launch(2, 2, STEP)
    check_launch(2, 1, {})
    check_launch(1, 1, {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"})
    check_launch(1, 1, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"})


@pytest.mark.parametrize(
    ("change", "devices", "message"),
    [
        ({"SLURM_STEP_ID": None}, 2, "not started by srun"),
        ({}, 1, "4 tasks"),
        ({"SLURM_JOB_NAME": "interactive"}, 2, "give the job another name"),
        ({"MASTER_ADDR": "no-such-node.invalid"}, 2, "does not resolve"),
    ],
)
def test_starts_that_would_hang_are_refused(change: dict[str, str | None], devices: int, message: str) -> None:
    environment = {key: value for key, value in (STEP | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        check_launch(devices, 2, environment)


@pytest.mark.parametrize(
    ("nodes", "first"), [("n7", "n7"), ("node[007-009,12],other", "node007"), ("a,b", "a"), ("", "")]
)
def test_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_a_task_of_an_array_is_queued_again_by_its_own_number() -> None:
    assert job_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}) == "7_2"
    assert job_id({"SLURM_JOB_ID": "9"}) == "9"
    assert job_id({}) is None


def test_a_requeue_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$1 $2" = "requeue 7_2" ] || { echo "Job is pending execution" >&2; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert requeue("7_2") is None
    assert requeue("8") == "Job is pending execution"


def test_the_script_is_one_that_bash_reads(tmp_path: Path) -> None:
    script = JobScript(["ovsl", "fit", "-c", "my file.yaml"], "train", "out", nodes=2, tasks_per_node=8, time="1:00:00")
    text = script.text()
    for line in ("--nodes=2", "--ntasks-per-node=8", "--signal=USR1@180", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}" in text
    assert text.endswith("exec srun --kill-on-bad-exit=1 ovsl fit -c 'my file.yaml'\n")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    with pytest.raises(InputError, match="cannot be called"):
        JobScript(["ovsl"], "bash", "out")


def test_a_template_of_the_users_own_starts_the_command_in_a_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "job.sh"
    own.write_text("#!/bin/bash\n{options}\n{setup}\nexec srun apptainer exec --nv ovsl.sif {command}\n")
    command = ["submit", "fit", "--run_dir", "runs/mine", "--slurm.template", str(own), "--dry_run"]
    assert main([*command, "--slurm.setup", '["module load apptainer"]']) == 0
    first, *options, setup, last = capsys.readouterr().out.splitlines()
    assert first == "#!/bin/bash"
    assert all(line.startswith("#SBATCH --") for line in options)
    assert setup == "module load apptainer"
    assert last.startswith("exec srun apptainer exec --nv ovsl.sif ovsl fit --run_dir runs/mine")
    own.write_text("{options}")
    assert main(command) == 2
    assert "has no {command}" in capsys.readouterr().err


def test_submit_freezes_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("run_dir: runs/mine\n")
    command = ["submit", "fit", "-c", str(config), "--run_dir", "runs/mine", "--slurm.gpus_per_node", "4"]
    command += ["--slurm.nodes=2", "--slurm.folder", str(tmp_path / "jobs"), "--slurm.time", "24:00:00"]
    assert main([*command, "--dry_run"]) == 0
    script = capsys.readouterr().out
    assert "--trainer.num_nodes 2 --trainer.devices 4" in script
    assert not (tmp_path / "jobs").exists()
    taken = tmp_path / "taken.sh"
    program = tmp_path / "sbatch"
    program.write_text(f"#!/bin/sh\ncat > {taken}\necho '11;cluster'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(command) == 0
    assert "Job 11" in capsys.readouterr().out
    (folder,) = (tmp_path / "jobs").iterdir()
    assert folder.name.startswith("mine-")
    assert taken.read_text() == (folder / "job.sh").read_text()
    assert (folder / "0-mine.yaml").read_text() == config.read_text()
    assert f"-c {folder / '0-mine.yaml'}" in taken.read_text()


@pytest.mark.parametrize("arguments", [["report"], [], ["fit", "-c", "missing.yaml"]])
def test_submit_says_what_is_missing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *arguments, "--dry_run"]) == 2
    assert capsys.readouterr().err.startswith("ovsl: ")


def test_every_study_of_the_experiments_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    from ovsl.suites import Study

    files = sorted(ROOT.glob("experiments/**/*study*.yaml"))
    assert len(files) >= 3
    for file in files:
        assert Study.read(file).cells()
