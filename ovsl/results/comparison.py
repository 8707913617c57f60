"""Two runs on the same images: how much the second is better, and whether images alone could explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ovsl.detections import TRUTHS, precision_scores
from ovsl.errors import InputError
from ovsl.results.bootstrap import PRECISION, Interval, differences
from ovsl.results.image_counts import ImageCounts
from ovsl.results.result import EvaluationResult
from ovsl.results.tables import FIGURES, TableStyle, note_of, percent, render
from ovsl.scores import ASKED, SEGMENTS, episode_scores, panoptic_scores, semantic_scores

TRUE = ("target_area", *TRUTHS)
"""Counts that are those of the ground truth alone."""


@dataclass(frozen=True)
class Comparison:
    """Two results of one dataset.

    Attributes:
        first: One of them.
        second: The other.
        intervals: 95 % interval of `second - first` by figure, over the same draws of images.
    """

    first: EvaluationResult
    second: EvaluationResult
    intervals: Mapping[str, Interval]

    def difference(self, figure: str) -> float | None:
        """`second - first`, None where one of the two is undefined."""
        before, after = self.first.metrics.get(figure), self.second.metrics.get(figure)
        return None if before is None or after is None else after - before


def compare(first: EvaluationResult, second: EvaluationResult) -> Comparison:
    """Compare two results with their counts per image.

    Figures over seen and unseen classes are left out where the two do not agree on which classes are seen.

    Raises:
        InputError: They are not of the same images, truth, classes, or rule for absent classes.
    """
    before, after = (_counts(result) for result in (first, second))
    where = f"'{first.run}' and '{second.run}' cannot be compared on {first.dataset}"
    if [each.name for each in first.per_class] != [each.name for each in second.per_class]:
        raise InputError(f"{where}: their classes differ; test both with one vocabulary.")
    if first.absent_classes != second.absent_classes:
        raise InputError(f"{where}: they treat absent classes differently; test both with one --model.absent_classes.")
    if not np.array_equal(before.images, after.images):
        only = np.setxor1d(before.images, after.images)
        example = f", '{only[0]}' is in one only" if len(only) else ""
        raise InputError(
            f"{where}: their images differ ({len(before)} and {len(after)}{example}); test both on the same ones."
        )
    shared = before.columns.keys() & after.columns.keys()
    if any(not np.array_equal(before.dense(name), after.dense(name)) for name in TRUE if name in shared):
        raise InputError(f"{where}: the ground truth of the same images differs; test both on the same labels.")
    found = [counts.detections for counts in (before, after)]
    if None not in found and len({each.rules for each in found if each is not None}) > 1:
        raise InputError(f"{where}: mask AP follows other rules; test both with one `average_precision`.")
    marks = [each.seen for each in first.per_class]
    agree = marks == [each.seen for each in second.per_class] and None not in marks
    seen = [bool(mark) for mark in marks] if agree else None
    episodes, segments = ASKED[0] in shared, SEGMENTS[0] in shared

    def score(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if episodes:
            return {name: value for name, value in episode_scores(sums).items() if name in FIGURES}
        scores = semantic_scores(sums, seen, "zero" if first.absent_classes == "zero" else "skip")
        if None not in found:
            scores |= precision_scores(sums[PRECISION], seen)
        if segments:
            # Results do not say which classes are things; what is shown here does not depend on it.
            scores |= panoptic_scores(sums, [True] * before.num_classes, seen)
        shown = (name for name in FIGURES if name in scores)
        return {name: scores[name] for name in shown}

    return Comparison(first, second, differences(before, after, score))


def format_comparisons(comparisons: Sequence[Comparison], style: TableStyle = "text") -> str:
    """Make a table of differences in percent, a row for each dataset and figure.

    Args:
        comparisons: Of the same two runs.
        style: See `ovsl.results.tables.format_table`.
    """
    names = [comparisons[0].first.run, comparisons[0].second.run]
    if names[0] == names[1]:
        names = [f"{name} ({place})" for name, place in zip(names, ("first", "second"), strict=True)]
    header = ["dataset", "figure", "images", *names, "difference"]
    header += ["low", "high"] if style == "csv" else ["95 % interval", ""]
    rows = [
        row
        for each in comparisons
        for name, text in FIGURES.items()
        if (row := _row(each, name, text, style)) is not None
    ]
    notes = [note_of(name) for name in sorted({each.first.absent_classes for each in comparisons})]
    notes.append(
        f"Difference: {names[1]} - {names[0]}, with its 95 % bootstrap interval over the same draws of images."
    )
    return render(header, rows, 2, notes, style)


def _row(each: Comparison, name: str, text: str, style: TableStyle) -> list[str] | None:
    difference = each.difference(name)
    if difference is None or (name not in each.intervals and _of_marks(name, each)):
        return None
    values = [percent(result.metrics[name]) for result in (each.first, each.second)]
    low, high = each.intervals.get(name, (None, None))
    ends = [_signed(low), _signed(high)]
    if style != "csv":
        ends = [f"[{ends[0]}, {ends[1]}]" if low is not None else "-", _verdict(low, high)]
    return [each.first.dataset, text, str(each.first.images), *values, _signed(difference), *ends]


def _of_marks(name: str, each: Comparison) -> bool:
    """Whether a figure depends on seen marks that the two do not share."""
    marks = ([entry.seen for entry in result.per_class] for result in (each.first, each.second))
    return ("seen" in name or name.startswith("h")) and len({tuple(own) for own in marks}) > 1


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def _counts(result: EvaluationResult) -> ImageCounts:
    if result.image_counts is None:
        raise InputError(f"'{result.run}' has no counts per image on {result.dataset}: test it again.")
    return result.image_counts
