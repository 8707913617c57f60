"""`ovsl submit`: a command as a SLURM job, its configuration frozen beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ovsl.cluster.slurm import JobScript, submit
from ovsl.errors import InputError

VERBS = ("fit", "validate", "test", "predict")


def main(args: Sequence[str]) -> None:
    """`ovsl submit fit -c FILE ... --slurm.nodes 2 --slurm.gpus_per_node 8 --slurm.time 24:00:00 [--dry_run]`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="ovsl submit",
        description="Write and submit the job script of a command, such as `fit -c FILE ... --slurm.time 24:00:00`. "
        "Everything but --slurm.* and --dry_run is the command's own.",
    )
    parser.add_argument("--dry_run", action="store_true", help="Print the script, write and submit nothing.")
    parser.add_argument("--slurm.name", type=str | None, default=None, help="Of the job; default the run's or verb's.")
    parser.add_argument("--slurm.folder", type=Path, default=Path("runs/jobs"), help="Where scripts and output go.")
    parser.add_class_arguments(JobScript, "slurm", skip={"command", "name", "folder", "array", "tasks_per_node"})
    own, command = _divide(args)
    config = parser.parse_args(own)
    if not command or command[0] not in VERBS:
        raise InputError(f"Which command? `ovsl submit {'|'.join(VERBS)} ...`.")
    slurm = vars(config.slurm)
    name = slurm.pop("name") or _run_name(command) or f"ovsl-{command[0]}"
    folder = slurm.pop("folder").resolve() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    tasks = max(1, slurm["gpus_per_node"])
    for option, value in (("--trainer.num_nodes", slurm["nodes"]), ("--trainer.devices", tasks)):
        if not any(argument.split("=")[0] == option for argument in command):
            command += [option, str(value)]
    frozen, files = _freeze(command, folder)
    text = JobScript(["ovsl", *frozen], name, str(folder), tasks_per_node=tasks, **slurm).text()
    if config.dry_run:
        print(text, end="")
        return
    folder.mkdir(parents=True)
    for file, copy in files:
        shutil.copyfile(file, copy)
    (folder / "job.sh").write_text(text)
    print(f"Job {submit(text)}: {folder / 'job.sh'}")


def _divide(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the options of the job from those of the command."""
    own: list[str] = []
    command: list[str] = []
    remaining = list(args)
    while remaining:
        argument = remaining.pop(0)
        if argument in ("--dry_run", "--help", "-h") and (argument == "--dry_run" or not command):
            own.append(argument)
        elif argument.startswith("--slurm."):
            own += [argument] if "=" in argument else [argument, *remaining[:1]]
            remaining = remaining if "=" in argument else remaining[1:]
        else:
            command.append(argument)
    return own, command


def _run_name(command: Sequence[str]) -> str | None:
    for position, argument in enumerate(command):
        if argument.startswith("--run_dir"):
            value = argument.partition("=")[2] or "".join(command[position + 1 : position + 2])
            return Path(value).name or None
    return None


def _freeze(command: Sequence[str], folder: Path) -> tuple[list[str], list[tuple[Path, Path]]]:
    """Let a command read copies of its configuration files, so that editing them does not change a requeued job.

    Returns:
        The command, and what has to be copied where.

    Raises:
        InputError: A file does not exist.
    """
    frozen: list[str] = []
    files: list[tuple[Path, Path]] = []
    for argument in command:
        follows = bool(frozen) and frozen[-1] in ("-c", "--config")
        flag, _, value = argument.partition("=")
        file = Path(argument if follows else value)
        if argument.startswith("ovsl:") or value.startswith("ovsl:"):
            frozen.append(argument)
        elif follows or (flag in ("-c", "--config") and value):
            if not file.is_file():
                raise InputError(f"There is no configuration {str(file)!r}.")
            copy = folder / f"{len(files)}-{file.name}"
            files.append((file, copy))
            frozen.append(str(copy) if follows else f"{flag}={copy}")
        else:
            frozen.append(argument)
    return frozen, files
