"""Curves of training, from the TensorBoard files of runs, as SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ovsl.progress import progress

POINTS = 150
"""Of a drawn line; more are averaged in bins."""
COLORS = ("#3a6ea5", "#e07a3f", "#3f9e6e", "#a5537b", "#8a7a2f", "#5b5fc7", "#c0453f", "#2f8f9d")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380.0, 220.0, 44.0, 10.0, 10.0, 26.0
WANTED = re.compile(r"train/loss|val/.+/(mIoU|mIoU_unseen|hIoU|PQ)")

Line = Sequence[tuple[float, float]]
"""Steps and values, ascending."""


def training_curves(runs: Sequence[Path]) -> dict[str, dict[str, Line]]:
    """Read the loss and the scores of validation of runs.

    Args:
        runs: Run directories; those without TensorBoard files are left out.

    Returns:
        Lines by run, by tag: `train/loss` first, then `val/<dataset>/<figure>` in percent.
    """
    found: dict[str, dict[str, Line]] = {}
    for run in progress(runs, "Reading curves"):
        if any(run.glob("events.out.tfevents.*")):
            for tag, line in _scalars(run).items():
                found.setdefault(tag, {})[run.name] = line
    return dict(sorted(found.items(), key=lambda entry: (entry[0] != "train/loss", entry[0])))


def _scalars(run: Path) -> dict[str, Line]:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    # 0 keeps every point; of everything else the fewest that it takes.
    events = EventAccumulator(str(run), {SCALARS: 0, "images": 1, "histograms": 1, "tensors": 1, "graph": 0})
    events.Reload()
    lines = {}
    for tag in events.Tags()[SCALARS]:
        if WANTED.fullmatch(tag):
            factor = 1.0 if tag == "train/loss" else 100.0
            points = [(float(event.step), factor * event.value) for event in events.Scalars(tag)]
            if points := [point for point in points if math.isfinite(point[1])]:
                lines[tag] = thin(points)
    return lines


def thin(line: Line, most: int = POINTS) -> Line:
    """Average a line in bins of neighbouring points, so that it has at most `most` points."""
    if len(line) <= most:
        return list(line)
    size = math.ceil(len(line) / most)
    bins = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in each) / len(each), sum(y for _, y in each) / len(each)) for each in bins]


def curves_html(curves: Mapping[str, Mapping[str, Line]]) -> str:
    """Draw one chart for each tag, and a key of the runs.

    Args:
        curves: See `training_curves`.

    Returns:
        HTML whose names are escaped; empty where there are no curves.
    """
    if not curves:
        return ""
    runs = list(dict.fromkeys(run for lines in curves.values() for run in lines))
    colors = {run: COLORS[index % len(COLORS)] for index, run in enumerate(runs)}
    key = "".join(f'<span style="background: {colors[run]}"></span>{escape(run)}' for run in runs)
    charts = "".join(
        f"<figure><figcaption>{escape(tag)}{'' if tag == 'train/loss' else ' (%)'}</figcaption>{_chart(lines, colors)}"
        "</figure>"
        for tag, lines in curves.items()
    )
    return f'<h2>Training</h2>\n<p class="note key">over steps{key}</p>\n<div class="charts">{charts}</div>'


def _chart(lines: Mapping[str, Line], colors: Mapping[str, str]) -> str:
    points = [point for line in lines.values() for point in line]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(left, tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for x, anchor in {left: "start" if right > left else "middle", right: "end" if right > left else "middle"}.items():
        parts.append(f'<text x="{place(x, low)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{x:g}</text>')
    for run, line in lines.items():
        dots = [place(x, y) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in dots)
        parts.append(f'<path class="line" stroke="{colors[run]}" d="M{path}"><title>{escape(run)}</title></path>')
        if len(dots) <= 20:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colors[run]}"/>' for x, y in dots]
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">{"".join(parts)}</svg>'


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose round values that enclose a range, about `count` apart.

    >>> nice_ticks(0.13, 2.9)
    [0.0, 1.0, 2.0, 3.0]
    """
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]
