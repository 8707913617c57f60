"""`ovsl report`: one table, and a chart of the classes, from the result files of any number of runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ovsl.errors import InputError
from ovsl.metrics.results import ClassResult, EvaluationResult
from ovsl.metrics.tables import FIGURES, TableStyle, average_over_seeds, format_table, percent


def main(args: Sequence[str]) -> None:
    """``ovsl report RUN_DIR... [--format text] [--output FILE] [--chart FILE.png] [--stage test]``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="ovsl report", description="Print one table of all results below the directories.")
    # From its signature alone, jsonargparse would want a list in brackets here.
    parser.add_argument("run_dirs", nargs="+", type=Path, help="Directories of runs, searched at any depth.")
    parser.add_function_arguments(report, skip={"run_dirs"}, as_group=False)
    report(**parser.parse_args(list(args)).as_dict())


def report(
    run_dirs: list[Path],
    format: TableStyle = "text",
    output: Path | None = None,
    chart: Path | None = None,
    stage: Literal["test", "validate"] | None = None,
    average_seeds: bool = False,
) -> None:
    """Prints one table of all results found below the given directories.

    Args:
        run_dirs: Run directories, or directories that hold several; `results` folders are searched at any depth.
        format: Style of the table: `text`, `markdown`, `csv` or `latex` (with the booktabs package).
        output: File that the table is written to, instead of the terminal.
        chart: PNG file for a bar chart of the IoU of every class.
        stage: Only the results of `ovsl test` or of `ovsl validate`; by default both.
        average_seeds: One row, mean and standard deviation, for runs whose names differ only in `-seed<number>`.

    Raises:
        InputError: If a directory does not exist or holds no results, or a result file cannot be read.
    """
    results = collect(run_dirs, stage)
    if average_seeds:
        results = average_over_seeds(results)
    table = format_table(results, format)
    if output is None:
        print(table, end="")
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(table, encoding="utf-8")
        print(f"table written to {output}")
    if chart is not None:
        draw_per_class_chart(results, chart)
        print(f"chart written to {chart}")


def collect(paths: Iterable[Path], stage: str | None = None) -> list[EvaluationResult]:
    """Reads every `results/*.json` below the given directories.

    Args:
        paths: Directories, searched at any depth.
        stage: Only results of this stage, `test` or `validate`.

    Returns:
        The results, sorted by dataset, stage, method and run; a file found by two paths counts once. A run without a
        name gets that of its directory.

    Raises:
        InputError: If a directory does not exist or holds no results, or a file cannot be read.
    """
    results: dict[Path, EvaluationResult] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"there is no directory '{path}': give the directory of a run, or of several.")
        found = {}
        for file in path.resolve().rglob("*.json"):
            if file.parent.name == "results":
                try:
                    result = EvaluationResult.from_json(file.read_text(encoding="utf-8"))
                except InputError as error:
                    raise InputError(f"'{file}' is {error}") from error
                found[file] = replace(result, run=result.run or _run_name(file.parent.parent, path.resolve()))
        found = {file: result for file, result in found.items() if stage in (None, result.stage)}
        if not found:
            verbs = f"`ovsl {stage}`" if stage else "`ovsl test` or `ovsl validate`"
            raise InputError(f"'{path}' holds no {f'{stage} ' if stage else ''}results: make them with {verbs}.")
        results |= found
    return sorted(results.values(), key=lambda each: (each.dataset, each.stage, each.method, each.run, each.step))


def _run_name(run_dir: Path, searched: Path) -> str:
    """What tells a run from the others found: its path below the searched directory."""
    return run_dir.name if run_dir in (searched, searched.parent) else run_dir.relative_to(searched).as_posix()


def draw_per_class_chart(results: Sequence[EvaluationResult], path: Path) -> None:
    """Draws the IoU of every class as horizontal bars, seen and unseen classes in different colours.

    Each result gets a panel of its own with its classes from best to worst; long vocabularies continue in further
    columns and rows.

    Args:
        results: What to draw.
        path: PNG file to write.
    """
    from matplotlib.artist import Artist
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grid = _panels(results)
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
            groups |= {_group(entry): _COLORS[_group(entry)] for entry in result.per_class}
            _draw_panel(axes, result, classes, part, heights[row_index])
    handles: dict[str, Artist] = {name: Patch(color=color) for name, color in groups.items()}
    handles["their mean"] = Line2D([], [], color="#6b7280", linestyle=(0, (4, 2)))
    figure.legend(handles.values(), handles, loc="upper center", ncols=len(handles), frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


# ---- chart

_ROWS, _COLUMNS = 45, 4
_COLORS = {"seen": "#3a6ea5", "unseen": "#e07a3f", "all classes": "#6b7280"}
_MEANS = {"seen": "mIoU_seen", "unseen": "mIoU_unseen", "all classes": "mIoU"}

_Panel = tuple[EvaluationResult, list[ClassResult], str]


def _group(entry: ClassResult) -> str:
    return "all classes" if entry.seen is None else "seen" if entry.seen else "unseen"


def _panels(results: Sequence[EvaluationResult]) -> list[list[_Panel]]:
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
            style = {"color": _COLORS[group], "linestyle": (0, (4, 2)), "linewidth": 1.1, "zorder": 0}
            axes.vlines(100 * mean, -0.6, len(classes) - 0.4, **style)
    # A white edge keeps the figures readable where they cross a line.
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for position, entry in enumerate(classes):
        value = 0.0 if entry.iou is None else 100 * entry.iou
        label, color = ("no ground truth", "#9ca3af") if entry.iou is None else (f"{value:.1f}", "#374151")
        axes.barh(position, value, height=0.72, color=_COLORS[_group(entry)])
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
