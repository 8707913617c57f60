"""How long the command takes to answer: `python experiments/benchmarks/startup.py [--repeats 3]`.

Each command runs in a process of its own; the fastest of the repeats is printed, wall time and processor time, in
seconds. Nothing is asserted: a busy machine answers later.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIT = ["-c", "ovsl:methods/patch_text", "-c", "ovsl:data/toy", "-c", "ovsl:trainer/debug"]
COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "a verb with a typo": ["fitt"],
    "a file that is not there": ["fit", "-c", "missing.yaml"],
    "report of no results": ["report", "."],
    "fit --help": ["fit", "--help"],
    "a method with a typo": ["fit", "--model", "ZegCLP"],
    "an option with a typo": ["fit", *FIT, "--model.templatess", "single"],
    "a vocabulary with a typo": ["predict", "--model", "MaskCLIP", "--data.vocabulary", "ade20k_15"],
    "fit, two steps and a validation": ["fit", *FIT, "--data.num_workers", "0", "--data.batch_size", "2"],
}


def measure(args: list[str], folder: str) -> tuple[float, float]:
    """Run a command; wall and processor seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ovsl", *args], cwd=folder, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(repeats: int) -> None:
    """Print a row for each command."""
    print("| command | wall, s | processor, s |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, args in COMMANDS.items():
            runs = [measure(args, folder) for _ in range(repeats)]
            print(f"| {name} | {min(run[0] for run in runs):.2f} | {min(run[1] for run in runs):.2f} |", flush=True)


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    table(parser.parse_args().repeats)


if __name__ == "__main__":
    main()
