"""A page of results: one HTML file that needs nothing beside it. No torch and no plotting library here.

Everything that comes from a run (names of classes, datasets, runs) is escaped: a vocabulary may be anybody's file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ovsl.results.result import ClassResult, EvaluationResult
from ovsl.results.tables import FIGURES, INTERVAL_NOTE, figure_names, note_of, percent, with_spread

if TYPE_CHECKING:
    from ovsl.results.confusion import Confusion

CONFUSED = 12
"""Classes of a shown confusion."""
SHEETS = {"-best": "Best images", "-worst": "Worst images", "": "First images"}
"""Endings of the names of pictures, and what they show."""


@dataclass(frozen=True)
class Detail:
    """A result and what lies beside it.

    Attributes:
        result: The result.
        confusion: Which class was taken for which, where it was counted.
        pictures: PNG files by what they show.
    """

    result: EvaluationResult
    confusion: Confusion | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def results_page(
    rows: Sequence[EvaluationResult], details: Sequence[Detail] = (), curves: str = "", title: str = "Results"
) -> str:
    """Make the page: a table of all results, curves, and for each result its classes, confusion and pictures.

    Args:
        rows: Rows of the table, in order.
        details: Sections, in order.
        curves: HTML, see `ovsl.results.curves.curves_html`.
        title: Heading of the page.

    Returns:
        HTML, its pictures inside it.
    """
    links = [f'<li><a href="#r{index}">{escape(_heading(each.result))}</a></li>' for index, each in enumerate(details)]
    parts = [
        f"<h1>{escape(title)}</h1>",
        _table(rows),
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(rows)),
        f"<nav><ul>{''.join(links)}</ul></nav>" if len(links) > 1 else "",
        curves,
        *(_section(index, detail) for index, detail in enumerate(details)),
    ]
    return document(title, parts)


def document(title: str, parts: Iterable[str]) -> str:
    """Make a page of its parts that fetches nothing and runs nothing.

    Args:
        title: Of the window; escaped here.
        parts: HTML, one below the other; empty ones are left out.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is fetched and nothing runs, whatever a name holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def detail(file: Path, result: EvaluationResult) -> Detail:
    """Read what lies beside a result file, `<run>/results/<stage>-<dataset>.json`.

    Raises:
        InputError: A file beside it cannot be read.
    """
    from ovsl.results.confusion import Confusion, confusion_file

    stem = f"{'val' if result.stage == 'validate' else result.stage}-{result.dataset}"
    sheets = {what: file.parent.parent / "pictures" / f"{stem}{ending}.png" for ending, what in SHEETS.items()}
    pictures = {what: sheet.read_bytes() for what, sheet in sheets.items() if sheet.is_file()}
    confusion = confusion_file(file)
    return Detail(result, Confusion.read(confusion) if confusion.is_file() else None, pictures)


def _notes(rows: Sequence[EvaluationResult]) -> list[str]:
    notes = [note_of(name) for name in sorted({each.absent_classes for each in rows})]
    return [*notes, INTERVAL_NOTE] if any(each.intervals for each in rows) else notes


def _heading(result: EvaluationResult) -> str:
    heading = f"{result.method} on {result.dataset}"
    return f"{heading} ({result.run}, {result.stage})" if result.run else heading


def _section(index: int, detail: Detail) -> str:
    parts = [f'<h2 id="r{index}">{escape(_heading(detail.result))}</h2>', _classes(detail.result)]
    if detail.confusion is not None:
        parts.append(_confusion(detail.confusion, [entry.name for entry in detail.result.per_class]))
    if detail.pictures:
        parts.append(f'<div class="sheets">{"".join(_sheet(*each) for each in detail.pictures.items())}</div>')
    return "\n".join(part for part in parts if part)


def _table(results: Sequence[EvaluationResult]) -> str:
    figures = figure_names(results)
    words = ("run", "method", "dataset", "stage")
    head = [f"<th>{word}</th>" for word in words]
    head += [f'<th class="n">{name}</th>' for name in ("images", *(FIGURES[figure] for figure in figures))]
    rows = []
    for result in results:
        cells = [f"<td>{escape(getattr(result, word))}</td>" for word in words]
        numbers = [str(result.images), *(_figure(result, figure) for figure in figures)]
        rows.append("<tr>" + "".join(cells + [f'<td class="n">{number}</td>' for number in numbers]) + "</tr>")
    return f'<div class="wide"><table><tr>{"".join(head)}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _figure(result: EvaluationResult, name: str) -> str:
    """Write a figure as the other tables do, its interval smaller."""
    text = with_spread(result, name, with_interval=False)
    if name in result.intervals:
        low, high = result.intervals[name]
        text += f" <small>[{percent(low)}, {percent(high)}]</small>"
    return text


def _classes(result: EvaluationResult) -> str:
    """Draw the IoU of every class as a bar, best first; classes without ground truth are named below."""
    classes = sorted((each for each in result.per_class if each.iou is not None), key=lambda each: -(each.iou or 0))
    absent = [each.name for each in result.per_class if each.iou is None]
    groups = [name for name in ("seen", "unseen") if any(_group(entry) == name for entry in classes)]
    key = "".join(f'<span style="background: var(--{name})"></span>{name}' for name in groups)
    bars = "\n".join(
        f'<li><span class="name" title="{escape(entry.name)}">{escape(entry.name)}</span><span class="track">'
        f'<span class="bar {_group(entry)}" style="width: {100 * (entry.iou or 0):.1f}%"></span></span>'
        f"<span>{percent(entry.iou)}</span></li>"
        for entry in classes
    )
    note = f'<p class="note">No ground truth: {escape(", ".join(absent))}.</p>' if absent else ""
    return f'<p class="note key">IoU of each class, percent{key}</p>\n<ul class="classes">\n{bars}\n</ul>{note}'


def _confusion(confusion: Confusion, names: Sequence[str]) -> str:
    """Show of the most confused classes what they were taken for, in percent of their pixels."""
    from ovsl.results.confusion import most_confused

    table = confusion.dense()
    chosen = most_confused(table, CONFUSED)
    if not chosen or len(names) != confusion.num_classes:
        return ""
    head = "".join(f'<th><span title="{escape(names[k])}">{escape(names[k])}</span></th>' for k in chosen)
    rows = []
    for true in chosen:
        pixels = int(table[true].sum())
        shares = [table[true, label] / pixels if pixels else 0.0 for label in chosen]
        cells = [
            _cell(share, "58 110 165" if label == true else "224 122 63")
            for label, share in zip(chosen, shares, strict=True)
        ]
        others = _cell(1 - sum(shares) if pixels else 0.0, "224 122 63")
        name = escape(names[true])
        rows.append(f'<tr><th title="{name}">{name}</th>{"".join(cells)}{others}</tr>')
    return (
        '<h3>Confused classes</h3>\n<p class="note">What each class (row) was taken for, percent of its pixels; the '
        f"{len(chosen)} classes with the most pixels that are wrong.</p>\n"
        f'<div class="wide"><table class="confusion"><thead><tr><th></th>{head}<th><span>others</span></th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(share: float, color: str) -> str:
    ink = "white" if share > 0.6 else "inherit"
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td style="background: rgb({color} / {share:.2f}); color: {ink}">{text}</td>'


def _group(entry: ClassResult) -> str:
    return "all" if entry.seen is None else "seen" if entry.seen else "unseen"


def figure(name: str, data: bytes) -> str:
    """Put a PNG file into a page, with what stands below it."""
    return f'<figure>{_image(name, data)}<figcaption class="note">{escape(name)}</figcaption></figure>'


def _sheet(name: str, data: bytes) -> str:
    return f"<figure><h3>{escape(name)}</h3>{_image(name, data)}</figure>"


def _image(name: str, data: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(data).decode("ascii")}" alt="{escape(name)}">'
