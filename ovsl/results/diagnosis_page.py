"""A page of diagnoses: tables and plots in one HTML file that needs nothing beside it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ovsl.results.chart import COLORS
from ovsl.results.diagnosis import SHOWN, table_rows
from ovsl.results.page import document, figure
from ovsl.results.tables import FIGURES, note_of, percent

_HIOU = "#111827"
_COMPARED = ("#111827", "#2f855a", "#b83280", "#b7791f", "#4c51bf", "#c53030")
"""Colours of methods, apart from those of seen and unseen."""


def diagnosis_page(told: Sequence[Mapping[str, Any]], title: str = "Diagnosis") -> str:
    """Make the page.

    Args:
        told: What `ovsl.results.diagnosis.diagnose` says of each result.
        title: Heading of the page.

    Returns:
        HTML, its plots inside it.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    datasets = dict.fromkeys(each["dataset"] for each in told)
    for dataset in datasets:
        rivals = [each for each in told if each["dataset"] == dataset and "offsets" in each]
        if len(rivals) > 1:
            parts += [f"<h2>All on {escape(dataset)}</h2>", figure(_RIVALS, draw_tradeoffs(rivals)), _areas(rivals)]
    parts += [part for each in told for part in _sections(each)]
    return document(title, parts)


_RIVALS = (
    "The mIoU of seen and unseen classes as an offset between them varies; a dot is the method without offset, a cross "
    "its best hIoU."
)

_AREAS = (
    "Both areas are the same whatever the scale of scores: that below hIoU takes the offset by the share of pixels "
    "that it gives to unseen classes, from none to all; the other is that below the best unseen mIoU at each seen mIoU."
)


def _sections(told: Mapping[str, Any]) -> Iterable[str]:
    yield f"<h2>{escape(told['method'])} on {escape(told['dataset'])} ({escape(told['run'])})</h2>"
    yield "<h3>Masks or names?</h3>"
    yield _table(
        ["", *(FIGURES[name] for name in SHOWN)],
        [[title, *(percent(scores[name]) for name in SHOWN)] for title, scores in table_rows(told)],
    )
    yield _note(" ".join([*_explained(told), note_of(told["absent_classes"])]))
    if "offsets" in told:
        yield "<h3>Seen words and unseen pixels</h3>"
        yield _groups(told["stolen"])
        yield from _pair_table(told["stolen"]["pairs"], "Seen words that take most unseen pixels")
        yield "<h3>The offset between seen and unseen</h3>"
        yield figure("Scores over an offset that is added to the scores of all unseen classes.", draw_curve(told))
        yield _areas([told])
        yield _note(_AREAS)
    near = told["near_names"]
    yield "<h3>Names that are near</h3>"
    share = percent(near["between_near_names"])
    yield _note(
        f"{share} % of all wrong pixels lie between names whose text embeddings, their mean taken away, have a cosine "
        f"of at least {near['threshold']:g}; there are {near['pairs_of_near_names']} such pairs."
    )
    yield from _pair_table(near["pairs"], "Near names that are mistaken most often")


def _explained(told: Mapping[str, Any]) -> Iterable[str]:
    yield "Percent."
    by = {
        "matched queries": "that the query says whose mask overlaps each most",
        "mean scores": "with the highest mean score over their pixels",
    }
    yield f"True masks get the class {by[told['true_masks_named_by']]}: what is missing there is the naming."
    if "true_classes" in told["scores"]:
        yield "Predicted masks get the class that most of their pixels have: what is missing there are the masks."
    yield "Along contours, only pixels within 2 % of the diagonal of their contour count."


def draw_curve(told: Mapping[str, Any]) -> bytes:
    """Draw the scores of a result over the offset between seen and unseen classes, as PNG."""
    curve, (chart, axes) = told["offsets"], _axes(6.4, 3.4)
    shown = _changing(curve)
    for name, color, label in (
        ("mIoU_seen", COLORS["seen"], "seen"),
        ("mIoU_unseen", COLORS["unseen"], "unseen"),
        ("hIoU", _HIOU, "hIoU"),
    ):
        values = [None if value is None else 100 * value for value in curve[name]]
        axes.plot(curve["offset"][shown], values[shown], color=color, label=label, linewidth=1.6)
    axes.axvline(0, color="#9ca3af", linestyle=(0, (4, 2)), linewidth=1)
    best = curve["best"]
    if best is not None:
        axes.plot(best["offset"], 100 * best["hIoU"], "x", color=_HIOU)
        text = f"best {percent(best['hIoU'])} at {best['offset']:.2g}, without {percent(curve['now']['hIoU'])}"
        axes.set_title(text, fontsize=9, loc="left")
    ends = [abs(offset) for offset in curve["offset"][shown]]
    axes.set_xscale("asinh", linear_width=max(max(ends) / 30, 1e-4))
    axes.set_xlabel("offset of unseen classes", fontsize=8)
    axes.set_ylabel("percent", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    return _png(chart)


def draw_tradeoffs(rivals: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the mIoU of unseen over that of seen classes of several results, as PNG."""
    chart, axes = _axes(5.2, 4.2)
    for index, told in enumerate(rivals):
        curve, color = told["offsets"], _COMPARED[index % len(_COMPARED)]
        points = [
            (100 * seen, 100 * unseen)
            for seen, unseen in zip(curve["mIoU_seen"], curve["mIoU_unseen"], strict=True)
            if seen is not None and unseen is not None
        ]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, label=f"{told['method']} ({told['run']})")
        for mark, point in (("o", curve["now"]), ("x", curve["best"])):
            if point is not None and None not in (point["mIoU_seen"], point["mIoU_unseen"]):
                axes.plot(100 * point["mIoU_seen"], 100 * point["mIoU_unseen"], mark, color=color)
    axes.set_xlabel("mIoU seen (%)", fontsize=8)
    axes.set_ylabel("mIoU unseen (%)", fontsize=8)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _png(chart)


def _changing(curve: Mapping[str, Any]) -> slice:
    """Where a curve changes, with some of what is flat on both sides; always with the offset 0."""
    values = list(zip(curve["mIoU_seen"], curve["mIoU_unseen"], strict=True))
    middle = len(values) // 2
    first = next((index for index, value in enumerate(values) if value != values[0]), middle)
    last = next((index for index in reversed(range(len(values))) if values[index] != values[-1]), middle)
    return slice(max(0, min(first, middle) - 8), max(last, middle) + 9)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots()
    axes.tick_params(labelsize=8, colors="#6b7280")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return chart, axes


def _png(chart: Any) -> bytes:
    buffer = io.BytesIO()
    chart.savefig(buffer, format="png")
    return buffer.getvalue()


def _areas(rivals: Sequence[Mapping[str, Any]]) -> str:
    header = ["", "hIoU", "best hIoU", "at offset", "area below hIoU", "area below seen and unseen"]
    rows = []
    for told in rivals:
        curve = told["offsets"]
        best = curve["best"] or {"hIoU": None, "offset": 0.0}
        cells = [percent(curve["now"]["hIoU"]), percent(best["hIoU"]), f"{best['offset']:.2g}"]
        cells += [percent(curve[name]) for name in ("area_hIoU", "area_seen_unseen")]
        rows.append([f"{told['method']} ({told['run']})", *cells])
    return _table(header, rows)


def _groups(stolen: Mapping[str, Any]) -> str:
    header = ["pixels of", "pixels", "right", "called another unseen class", "called another seen class"]
    shares = ("right", "other_unseen", "other_seen")
    rows = [
        [f"{group} classes", f"{stolen[group]['pixels']:,}", *(percent(stolen[group][name]) for name in shares)]
        for group in ("seen", "unseen")
    ]
    return _table(header, rows)


def _pair_table(pairs: Sequence[Mapping[str, Any]], title: str) -> Iterable[str]:
    yield _note(f"{title}:" if pairs else f"{title}: there are none.")
    if not pairs:
        return
    similar = ["similarity"] if "similarity" in pairs[0] else []
    rows = [
        [pair["truth"], pair["prediction"], f"{pair['pixels']:,}", percent(pair["share"])]
        + [f"{pair[name]:.2f}" for name in similar]
        for pair in pairs
    ]
    yield _table(["true class", "called", "pixels", "% of the true class", *similar], rows, words=2)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if index < words else ' class="n"' for index in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    lines = [line(header, "th"), *(line(row, "td") for row in rows)]
    return '<div class="wide"><table>' + "\n".join(f"<tr>{each}</tr>" for each in lines) + "</table></div>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
