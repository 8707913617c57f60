"""`ovsl study`: run what is not finished of a study, then make its table and its page."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ovsl.cluster.slurm import JobScript, submit
from ovsl.errors import InputError
from ovsl.suites.execution import OVSL, run_cells
from ovsl.suites.study import Study


def main(args: Sequence[str]) -> int:
    """`ovsl study FILE.yaml [--jobs 2] [--dry_run] [--seeds 0 1] [--runs DIR] [--slurm OPTIONS]`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="ovsl study", description="Run what is not finished, then make table and page.")
    parser.add_argument("file", type=Path, help="The study.")
    parser.add_argument("--runs", type=Path | None, default=None, help="Another folder of the runs.")
    parser.add_argument("--seeds", type=int, nargs="*", default=None, help="Other seeds.")
    parser.add_argument("--set", nargs="*", metavar="OPTION=VALUE", help="Options that win over those of the study.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, with logs beside the runs.")
    parser.add_argument("--dry_run", action="store_true", help="Print every command and run none.")
    parser.add_argument("--slurm", action="store_true", help="Submit what is not finished as one array of jobs.")
    parser.add_class_arguments(JobScript, "job", skip={"command", "name", "folder", "array"})
    parser.add_argument("--array_task", action="store_true", help="Run the one cell that this task of an array has.")
    config = parser.parse_args(list(args))
    overrides = dict(entry.partition("=")[::2] for entry in config.set or ())
    study = Study.read(config.file, config.runs, None if config.seeds is None else tuple(config.seeds), overrides)
    if config.array_task:
        return _array_task(study)
    if config.slurm:
        cells = study.cells()
        waiting = [index for index, cell in enumerate(cells) if not cell.finished]
        if not waiting:
            raise InputError(f"All {len(cells)} runs of {study.file} are finished: leave --slurm out for the table.")
        shared = ["--runs", str(study.runs), "--seeds", *map(str, study.seeds)]
        overriding = ["--set", *config.set] if config.set else []
        command = ["ovsl", "study", str(study.file), *shared, *overriding, "--array_task"]
        script = JobScript(command, study.file.stem, str(study.runs / "logs"), array=_indices(waiting), **config.job)
        if config.dry_run:
            print(script.text(), end="")
            return 0
        (study.runs / "logs").mkdir(parents=True, exist_ok=True)
        print(f"{len(waiting)} runs are job {submit(script.text())}; afterwards `ovsl study {study.file}`: the table.")
        return 0
    if config.dry_run:
        for cell in study.cells():
            for command in cell.commands():
                print(shlex.join(["ovsl", *command]) + ("  # finished" if cell.finished else ""))
        print(shlex.join(["ovsl", *study.report()]))
        for analysis in study.analyses():
            print(shlex.join(analysis))
        return 0
    outcomes = run_cells(study.cells(), config.jobs, study.runs / "logs" if config.jobs > 1 else None)
    failed = [outcome for outcome in outcomes if outcome.status]
    for outcome in failed:
        print(f"failed: {outcome.cell.name} (status {outcome.status})", file=sys.stderr)
    if any(cell.finished for cell in study.cells()):
        if status := subprocess.run([*OVSL, *study.report()], check=False).returncode:
            return status
        print(study.table.read_text(), end="")
        print(f"page: {study.page / 'index.html'}")
        for analysis in [] if failed else study.analyses():
            subprocess.run(analysis, check=False)
    return 1 if failed else 0


def _array_task(study: Study) -> int:
    number, cells = os.environ.get("SLURM_ARRAY_TASK_ID", ""), study.cells()
    if not number.isdigit() or int(number) >= len(cells):
        raise InputError("--array_task is for the tasks of an array that `ovsl study --slurm` submitted.")
    outcomes = run_cells([cells[int(number)]])
    return outcomes[0].status if outcomes else 0


def _indices(numbers: list[int]) -> str:
    """Write indices as an array takes them."""
    return ",".join(map(str, numbers))
