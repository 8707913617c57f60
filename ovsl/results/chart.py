"""A bar chart of the IoU of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovsl.results.result import ClassResult, EvaluationResult
from ovsl.results.tables import FIGURES, percent

_ROWS, _COLUMNS = 45, 4
COLORS = {"seen": "#3a6ea5", "unseen": "#e07a3f", "all classes": "#6b7280"}
_MEANS = {"seen": "mIoU_seen", "unseen": "mIoU_unseen", "all classes": "mIoU"}

_Panel = tuple[EvaluationResult, list[ClassResult], str]


def draw_per_class_chart(results: Sequence[EvaluationResult], path: Path) -> None:
    """Draw the IoU of every class as horizontal bars, seen and unseen classes in different colours.

    Each result gets a panel of its own with its classes from best to worst; long vocabularies continue in further
    columns and rows.

    Args:
        results: What to draw.
        path: PNG file to write.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # names may have dollar signs
        _draw(results, path)


def _draw(results: Sequence[EvaluationResult], path: Path) -> None:
    from matplotlib.artist import Artist
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grid = panel_grid(results)
    columns = max(len(row) for row in grid)
    heights = [max(len(classes) for _, classes, _ in row) for row in grid]
    bar, margin, legend = 0.2, 1.0, 0.4
    height = legend + sum(bar * count + margin for count in heights)
    # A PNG of matplotlib has less than 65536 pixels on a side.
    figure = Figure(figsize=(max(4.2 * columns, 6.0), height), dpi=min(120, 65000 / height))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - legend / height), hspace=0.02)
    FigureCanvasAgg(figure)
    cells = figure.subplots(
        len(grid), columns, squeeze=False, height_ratios=[count + margin / bar for count in heights]
    )
    groups: dict[str, str] = {}
    for row_index, row in enumerate(grid):
        for axes in cells[row_index, len(row) :]:
            axes.set_visible(False)
        for axes, (result, classes, part) in zip(cells[row_index], row, strict=False):
            groups |= {_group(entry): COLORS[_group(entry)] for entry in result.per_class}
            _draw_panel(axes, result, classes, part, heights[row_index])
    handles: dict[str, Artist] = {name: Patch(color=color) for name, color in groups.items()}
    handles["their mean"] = Line2D([], [], color="#6b7280", linestyle=(0, (4, 2)))
    figure.legend(handles.values(), handles, loc="upper center", ncols=len(handles), frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _group(entry: ClassResult) -> str:
    return "all classes" if entry.seen is None else "seen" if entry.seen else "unseen"


def panel_grid(results: Sequence[EvaluationResult]) -> list[list[_Panel]]:
    """Rows of panels: results of one dataset side by side, a long class list over as many columns as it needs."""
    grid: list[list[_Panel]] = []
    open_row: str | None = None
    for result in results:
        # Best first; classes that have no IoU come last.
        classes = sorted(result.per_class, key=lambda entry: math.inf if entry.iou is None else -entry.iou)
        parts = max(1, math.ceil(len(classes) / _ROWS))
        size = max(1, math.ceil(len(classes) / parts))
        panels: list[_Panel] = [
            (result, classes[start : start + size], f" ({start // size + 1} of {parts})" if parts > 1 else "")
            for start in range(0, max(1, len(classes)), size)
        ]
        if open_row == result.dataset and len(grid[-1]) < _COLUMNS:
            grid[-1] += panels
        else:
            grid += [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
        open_row = result.dataset if parts == 1 else None
    return grid


def _draw_panel(axes: Any, result: EvaluationResult, classes: list[ClassResult], part: str, height: int) -> None:
    from matplotlib.patheffects import withStroke

    for group in {_group(entry): None for entry in result.per_class}:
        mean = result.metrics.get(_MEANS[group])
        if mean is not None:
            style = {"color": COLORS[group], "linestyle": (0, (4, 2)), "linewidth": 1.1, "zorder": 0}
            axes.vlines(100 * mean, -0.6, len(classes) - 0.4, **style)
    # A white edge keeps the figures readable where they cross a line.
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for position, entry in enumerate(classes):
        value = 0.0 if entry.iou is None else 100 * entry.iou
        label, color = ("no ground truth", "#9ca3af") if entry.iou is None else (f"{value:.1f}", "#374151")
        axes.barh(position, value, height=0.72, color=COLORS[_group(entry)])
        axes.text(value + 1, position, label, va="center", fontsize=7, color=color, path_effects=halo)
    axes.set_yticks(range(len(classes)), [_shorten(entry.name) for entry in classes], fontsize=8)
    # The same bar width in every panel of a row, also where classes are fewer; the first class on top.
    axes.set_ylim(height - 0.4, -0.6)
    # Room for the figure beside a full bar.
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU (%)", fontsize=7, color="#6b7280")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7, colors="#6b7280")
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d1d5db")
    figures = ", ".join(
        f"{FIGURES[name]} {percent(result.metrics.get(name))}" for name in ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU")
    )
    above = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(f"{result.method} on {result.dataset}{part}", xytext=(0, 24), fontsize=10, weight="bold", **above)
    axes.annotate(f"{result.run}\n{figures}", xytext=(0, 3), fontsize=7, color="#4b5563", **above)


def _shorten(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[: length - 1].rstrip(" ,") + "…"
