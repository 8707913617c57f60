"""Tables of results: text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from statistics import mean, stdev
from typing import Literal, get_args

from ovsl.errors import InputError
from ovsl.results.result import EvaluationResult

TableStyle = Literal["text", "markdown", "csv", "latex"]

FIGURES = {
    "pAcc": "pAcc",
    "mIoU": "mIoU",
    "mIoU_seen": "mIoU seen",
    "mIoU_unseen": "mIoU unseen",
    "hIoU": "hIoU",
    "mIoU_seen_by_synonyms": "mIoU seen by synonyms",
    "mIoU_unseen_by_synonyms": "mIoU unseen by synonyms",
    "hIoU_by_synonyms": "hIoU by synonyms",
    "PQ": "PQ",
    "PQ_seen": "PQ seen",
    "PQ_unseen": "PQ unseen",
    "AP": "AP",
    "binary_mIoU": "binary mIoU",
    "FB_IoU": "FB-IoU",
}
# Columns only where some result has them: FC-CLIP's own rule of seen classes where it is another, and mask methods.
_OPTIONAL = {name for name in FIGURES if name.endswith("_by_synonyms")} | {
    "PQ",
    "PQ_seen",
    "PQ_unseen",
    "AP",
    "binary_mIoU",
    "FB_IoU",
}
_CONVENTIONS = {
    "skip": "Means leave out classes without ground truth (skip).",
    "zero": "Means count classes that are predicted but have no ground truth as 0 (zero).",
}
INTERVAL_NOTE = "In brackets: 95 % bootstrap interval over images."
_UNDEFINED = "-"


@dataclass(frozen=True)
class SeedAverage(EvaluationResult):
    """The mean of several runs that differ only in their seed.

    Args:
        spread: Standard deviation over the seeds (n - 1) of each of `metrics`.
        seeds: Number of runs.
    """

    spread: dict[str, float] = field(default_factory=dict)
    seeds: int = 1


def average_over_seeds(results: Iterable[EvaluationResult]) -> list[EvaluationResult]:
    """Put runs together whose names differ only in `-seed<number>`.

    Returns:
        Means in the order of the first run of each group, the number of seeds in the name; a run without a sister
        stays as it is. A figure that is undefined for one seed is undefined in the mean. Figures per class are those of
        the first run.
    """
    groups: dict[tuple[str, ...], list[EvaluationResult]] = {}
    for result in results:
        name = re.sub(r"-seed\d+", "", result.run)
        groups.setdefault((name, result.method, result.dataset, result.stage), []).append(result)
    averaged: list[EvaluationResult] = []
    for (name, *_), members in groups.items():
        if len(members) == 1:
            averaged += members
            continue
        means: dict[str, float | None] = {}
        spread: dict[str, float] = {}
        for metric in members[0].metrics:
            values = [member.metrics.get(metric) for member in members]
            numbers = [value for value in values if value is not None]
            means[metric] = mean(numbers) if len(numbers) == len(values) else None
            if means[metric] is not None:
                spread[metric] = stdev(numbers)
        first = {each.name: getattr(members[0], each.name) for each in fields(EvaluationResult)}
        # What varies over images is another thing than what varies over seeds, and one stands in a cell.
        first |= {"run": f"{name} ({len(members)} seeds)", "metrics": means}
        first |= {"intervals": {}, "image_counts": None, "confusion": None, "diagnosis": None}
        averaged.append(SeedAverage(**first, spread=spread, seeds=len(members)))
    return averaged


def format_table(results: Sequence[EvaluationResult], style: TableStyle = "text") -> str:
    """Make one table, with figures in percent.

    A line below the table (a column in CSV) says how classes without ground truth were treated. Markdown and LaTeX set
    the best figures of each dataset in bold when there is more than one to choose from. Figures that have an interval
    are followed by it, in columns of their own in CSV.

    Args:
        results: The rows, in order.
        style: `text`, `markdown`, `csv` or `latex`.

    Returns:
        The table, ending with a line break.

    Raises:
        InputError: If the style is unknown.
    """
    if style not in get_args(TableStyle):
        raise InputError(f"unknown table format '{style}': choose one of {', '.join(get_args(TableStyle))}.")
    several_stages = len({result.stage for result in results}) > 1
    conventions = sorted({result.absent_classes for result in results})
    # Rows that were averaged differently must not look alike.
    show_convention = style == "csv" or len(conventions) > 1
    labels: dict[str, Callable[[EvaluationResult], str]] = {
        **({"run": lambda result: result.run} if any(result.run for result in results) else {}),
        "method": lambda result: result.method,
        "dataset": lambda result: result.dataset,
        **({"stage": lambda result: result.stage} if several_stages else {}),
        **({"absent classes": lambda result: result.absent_classes} if show_convention else {}),
        "images": lambda result: str(result.images),
    }
    figures = figure_names(results)
    with_ends = [name for name in figures if style == "csv" and any(name in each.intervals for each in results)]
    quoted = [name for name in FIGURES if any(name in each.published for each in results)]
    header = [*labels, *(FIGURES[name] for name in figures), *(f"{FIGURES[name]} published" for name in quoted)]
    header += [f"{FIGURES[name]} {end}" for name in with_ends for end in ("low", "high")]
    rows = [
        [
            *(label(result) for label in labels.values()),
            *(with_spread(result, name, style != "csv") for name in figures),
            *(percent(result.published.get(name)) for name in quoted),
            *(percent(end) for name in with_ends for end in result.intervals.get(name, (None, None))),
        ]
        for result in results
    ]
    notes = [note_of(name) for name in conventions]
    if any(each.intervals for each in results):
        notes.append(INTERVAL_NOTE)
    best = _best(results, rows, len(labels), len(figures))
    return render(header, rows, len(labels) - 1, notes, style, best)


def render(
    header: list[str],
    rows: list[list[str]],
    first_number: int,
    notes: list[str],
    style: TableStyle,
    best: Collection[tuple[int, int]] = (),
) -> str:
    """Write a table in one of the styles.

    Args:
        header: Names of the columns.
        rows: Cells.
        first_number: First column that is set to the right.
        notes: Sentences below it; not in CSV.
        style: `text`, `markdown`, `csv` or `latex`.
        best: Cells (row, column) in bold, in Markdown and LaTeX.

    Returns:
        The table, ending with a line break.
    """
    if style == "csv":
        return _csv(header, rows)
    if style == "text":
        return _text(header, rows, first_number, notes)
    write = _markdown if style == "markdown" else _latex
    return write(header, rows, best, first_number, notes)


def figure_names(results: Sequence[EvaluationResult]) -> list[str]:
    """Names of the figures that a table of these results has columns for."""
    return [name for name in FIGURES if name not in _OPTIONAL or any(name in each.metrics for each in results)]


def note_of(absent_classes: str) -> str:
    """Say how means treat classes without ground truth."""
    return _CONVENTIONS.get(absent_classes, absent_classes)


def percent(value: float | None) -> str:
    """Write a fraction in percent with one decimal, or a dash where it is undefined."""
    return _UNDEFINED if value is None or math.isnan(value) else f"{100 * value:.1f}"


def with_spread(result: EvaluationResult, name: str, with_interval: bool = True) -> str:
    """Write a figure of a result in percent, with its interval and its standard deviation over seeds, if any."""
    text = percent(result.metrics.get(name))
    if with_interval and name in result.intervals:
        low, high = result.intervals[name]
        text += f" [{percent(low)}, {percent(high)}]"
    if isinstance(result, SeedAverage) and name in result.spread:
        text += f" ± {100 * result.spread[name]:.1f}"
    return text


def _best(
    results: Sequence[EvaluationResult], rows: Sequence[Sequence[str]], first: int, count: int
) -> set[tuple[int, int]]:
    """Cells (row, column) that hold the highest figure of their dataset, as printed; ties all count."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, result in enumerate(results):
        groups.setdefault((result.dataset, result.stage), []).append(index)
    best = set()
    for members in groups.values():
        for column in range(first, first + count):
            cells = {index: rows[index][column] for index in members if rows[index][column] != _UNDEFINED}
            values = {index: float(cell.split()[0]) for index, cell in cells.items()}
            if len(values) > 1:
                best |= {(index, column) for index, value in values.items() if value == max(values.values())}
    return best


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([header, *rows])
    return buffer.getvalue()


def _aligned(rows: Sequence[Sequence[str]], first_number: int) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.rjust(width) if index >= first_number else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]


def _text(header: list[str], rows: list[list[str]], first_number: int, notes: list[str]) -> str:
    head, *body = ("  ".join(row).rstrip() for row in _aligned([header, *rows], first_number))
    rule = "-" * max(map(len, (head, *body)))
    return "\n".join([head, rule, *body, "", "Percent. " + " ".join(notes)]) + "\n"


def _markdown(
    header: list[str], rows: list[list[str]], best: Collection[tuple[int, int]], first_number: int, notes: list[str]
) -> str:
    marked = [
        [f"**{cell}**" if (index, column) in best else cell.replace("|", "\\|") for column, cell in enumerate(row)]
        for index, row in enumerate(rows)
    ]
    head, *body = ("| " + " | ".join(row) + " |" for row in _aligned([header, *marked], first_number))
    rule = "|" + "|".join("---:" if index >= first_number else "---" for index in range(len(header))) + "|"
    return "\n".join([head, rule, *body, "", "Percent. " + " ".join(notes)]) + "\n"


def _latex(
    header: list[str], rows: list[list[str]], best: Collection[tuple[int, int]], first_number: int, notes: list[str]
) -> str:
    def cell(index: int, column: int, text: str) -> str:
        text = "--" if text == _UNDEFINED else "".join(_LATEX.get(letter, letter) for letter in text)
        return rf"\textbf{{{text}}}" if (index, column) in best else text

    lines = [" & ".join(cell(index, column, text) for column, text in enumerate(row)) for index, row in enumerate(rows)]
    columns = "l" * first_number + "r" * (len(header) - first_number)
    return (
        "\n".join(
            [
                f"% Percent. {' '.join(notes)}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(header) + r" \\",
                r"\midrule",
                *(line + r" \\" for line in lines),
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
        + "\n"
    )


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
