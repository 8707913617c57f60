"""SLURM: which job this is, whether it was started right, queueing it again, and job scripts."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovsl.errors import InputError

TEMPLATE = """\
#!/bin/bash
{options}
set -euo pipefail
# srun does not take over the cores of the job by itself since 22.05.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
{setup}
# The last line hands its status on, and a task that crashes ends the others.
exec srun --kill-on-bad-exit=1 {command}
"""
"""The script of a job; see `JobScript` for its parts."""

NAMES_OF_SHELLS = ("bash", "interactive")
"""Job names that the trainer takes for an allocation worked in by hand."""


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """Name this job to `scontrol`; None outside of one.

    Args:
        environment: Variables of the process.
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def requeue(job: str) -> str | None:
    """Put a job into the queue again, under its number.

    Args:
        job: As `job_id` gives it.

    Returns:
        None, or why it could not be done.
    """
    try:
        # In a session of its own: the signals to this process group would end it too.
        done = subprocess.run(
            ["scontrol", "requeue", job],
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip() or f"scontrol ended with {done.returncode}")


def check_launch(devices: int, num_nodes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a start in a job of several tasks that would wait for processes which never come.

    Args:
        devices: Processes per node that the trainer wants.
        num_nodes: Nodes that the trainer wants.
        environment: Variables of the process.

    Raises:
        InputError: Not started by `srun`, another number of tasks, or a main node whose name does not resolve.
    """
    name = environment.get("SLURM_JOB_NAME")
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if "SLURM_NTASKS" not in environment:
        return
    if name in NAMES_OF_SHELLS:
        if tasks > 1 and environment.get("SLURM_STEP_ID", "").isdigit():
            raise InputError(
                f"A job called {name!r} counts as worked in by hand: each of its {tasks} tasks would train alone into "
                "the same folder; give the job another name."
            )
        return
    if tasks > 1 and "SLURM_STEP_ID" not in environment:
        raise InputError(
            f"This job has {tasks} tasks, but the command was not started by srun: the others would be waited for. "
            "Start it as `srun ovsl ...`."
        )
    if tasks != devices * num_nodes:
        raise InputError(
            f"The job has {tasks} tasks, but trainer.devices {devices} and trainer.num_nodes {num_nodes} make "
            f"{devices * num_nodes} processes: submit with --nodes={num_nodes} --ntasks-per-node={devices}."
        )
    main = environment.get("MASTER_ADDR") or first_node(environment.get("SLURM_NODELIST", ""))
    if tasks > 1 and main:
        try:
            socket.getaddrinfo(main, None)
        except socket.gaierror as error:
            raise InputError(
                f"The name of the main node, {main!r}, does not resolve: set MASTER_ADDR to its address in the job "
                "script."
            ) from error


def first_node(nodes: str) -> str:
    """Name the first node of a list such as `node[007-009,12],other`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    return "" if match is None else match[1] + (match[2] or "")


@dataclass(frozen=True)
class JobScript:
    """A batch script.

    Args:
        command: What each task runs.
        name: Of the job; not `bash` or `interactive`.
        folder: Where output goes.
        nodes: Number of nodes.
        tasks_per_node: Processes per node: one for each device.
        gpus_per_node: GPUs per node; 0 for none.
        cpus_per_task: CPU cores per process.
        time: Limit, such as `24:00:00`; None for that of the partition.
        partition: None for the default.
        account: None for the default.
        array: Indices of an array, such as `0-20%4`; None for a single job.
        grace: Seconds before the limit at which SIGUSR1 comes; a checkpoint has to fit in.
        setup: Lines of the user's own before the command: modules, environments, a container's variables.
        options: Further `#SBATCH` options.
        template: File with a script of the user's own, for containers and other launchers: `{options}` stands for the
            lines of `#SBATCH`, `{setup}` for those of the setup, `{command}` for what each task runs.
    """

    command: Sequence[str]
    name: str
    folder: str
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 4
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    array: str | None = None
    grace: int = 180
    setup: Sequence[str] = ()
    options: Sequence[str] = ()
    template: Path | None = None

    def __post_init__(self) -> None:
        if self.name in NAMES_OF_SHELLS or not re.fullmatch(r"[\w.+-]+", self.name):
            raise InputError(f"A job cannot be called {self.name!r}: take letters, digits, '.', '-' and '_'.")

    def text(self) -> str:
        """Write the script."""
        output = f"{self.folder}/%x-{'%A_%a' if self.array else '%j'}.out"
        wanted: dict[str, object | None] = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "array": self.array,
            # To the tasks, not to the shell of the script, which would die of it.
            "signal": f"USR1@{self.grace}",
            "output": output,
            "open-mode": "append",
        }
        lines = [f"#SBATCH --{key}={value}" for key, value in wanted.items() if value is not None]
        lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in self.options)]
        text = TEMPLATE if self.template is None else _own_template(self.template)
        parts = {"{options}": lines, "{setup}": self.setup, "{command}": [shlex.join(self.command)]}
        for name, part in parts.items():
            text = text.replace(name, "\n".join(part))
        return text


def _own_template(file: Path) -> str:
    """Read a user's template.

    Raises:
        InputError: It cannot be read, or has no place for the command.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the template {file} of a job ({error}).") from error
    missing = next((name for name in ("{options}", "{command}") if name not in text), None)
    if missing is not None:
        raise InputError(f"The template {file} has no {missing}: that is where ovsl puts its own.")
    return text


def submit(script: str) -> str:
    """Hand a script to SLURM.

    Args:
        script: Its text.

    Returns:
        Number of the job.

    Raises:
        InputError: There is no `sbatch`, or it refused.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"Cannot submit, since sbatch does not run here ({error}): use --dry_run true.") from error
    if done.returncode:
        raise InputError(f"SLURM refused the job: {done.stderr.strip()}.")
    return done.stdout.strip().split(";")[0]
