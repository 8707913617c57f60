"""Two forms of one computation, timed in turns: the form before, kept here, and the one that the package has."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        name: What is computed.
        before: The plain or earlier form.
        after: The form of the package.
        difference: Says in words how far the results of both lie apart.
        rounds: Turns of both, after one that does not count.
    """

    name: str
    before: Callable[[], Any]
    after: Callable[[], Any]
    difference: Callable[[Any, Any], str]
    rounds: int = 5

    def row(self) -> str:
        """Measure, and return a line of a Markdown table: medians, with minima in brackets."""
        difference = self.difference(self.before(), self.after())
        times: dict[str, list[float]] = {"before": [], "after": []}
        for _ in range(self.rounds):
            for form in times:
                start = time.process_time()
                getattr(self, form)()
                times[form].append(1000 * (time.process_time() - start))
        median, least = ({form: pick(t) for form, t in times.items()} for pick in (statistics.median, min))
        cells = [f"{median[form]:.4g} ({least[form]:.4g})" for form in times]
        return f"| {self.name} | {cells[0]} | {cells[1]} | {median['before'] / median['after']:.2f} | {difference} |"


HEADER = "| what | before, ms | here, ms | factor | difference |\n|---|---:|---:|---:|---|"


def differing(before: torch.Tensor, after: torch.Tensor) -> str:
    """Count the labels that differ."""
    return f"{int((before != after).sum())} of {before.numel()} differ"


def largest(before: torch.Tensor, after: torch.Tensor) -> str:
    """Largest difference relative to the largest number."""
    return f"{float((before - after).abs().max() / before.abs().max()):.1e} relative"


def machine() -> str:
    """Name what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return (
        f"{cpu}, one thread of {os.cpu_count()}, torch {torch.__version__}, OpenCV {cv2.__version__}, processor time, "
        "both forms in turns in one process, median and (minimum)"
    )
