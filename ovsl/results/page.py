"""A page of results: one HTML file that needs nothing beside it. No torch and no plotting library here.

Everything that comes from a run (names of classes, datasets, runs) is escaped: a vocabulary may be anybody's file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from ovsl.results.result import ClassResult, EvaluationResult
from ovsl.results.tables import FIGURES, figure_names, note_of, percent, with_spread

STYLE = """
:root { --ink: #1f2937; --pale: #6b7280; --line: #e5e7eb; --seen: #3a6ea5; --unseen: #e07a3f; --all: #6b7280 }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse } th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line) }
th { text-align: left; color: var(--pale); font-weight: 600 } td.n, th.n { text-align: right }
td.n { font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } .note { color: var(--pale) }
.classes { columns: 20rem; column-gap: 2rem; padding: 0; list-style: none }
.classes li { display: grid; grid-template-columns: 9rem 1fr 3.2rem; gap: .5rem; align-items: center }
.classes li { break-inside: avoid }
.classes .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: right }
.track { background: #f3f4f6; height: .8rem } .bar { display: block; height: 100%; background: var(--all) }
.bar.seen { background: var(--seen) } .bar.unseen { background: var(--unseen) }
.key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .4rem 0 1rem }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 }
"""


def results_page(results: Sequence[EvaluationResult], pictures: Mapping[str, bytes], title: str = "Results") -> str:
    """Make the page: a table of all results, the IoU of every class, and the sheets of predictions.

    Args:
        results: The rows, in order.
        pictures: PNG files of predictions by what stands below them.
        title: Heading of the page.

    Returns:
        HTML, its pictures inside it.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        _table(results),
        *(f'<p class="note">{escape(note_of(name))}</p>' for name in sorted({each.absent_classes for each in results})),
        *(_classes(result) for result in results),
        "<h2>Predictions</h2>" if pictures else "",
        *(figure(name, data) for name, data in pictures.items()),
    ]
    return document(title, parts)


def document(title: str, parts: Iterable[str]) -> str:
    """Make a page of its parts that fetches nothing and runs nothing.

    Args:
        title: Of the window; escaped here.
        parts: HTML, one below the other; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is fetched and nothing runs, whatever a name holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def run_pictures(results: Iterable[Path]) -> dict[str, bytes]:
    """Read the sheets of predictions that lie in the runs of result files, by run and name.

    Args:
        results: Result files, `<run>/results/<stage>-<dataset>.json`.
    """
    runs = dict.fromkeys(file.parent.parent for file in results)
    sheets = [sheet for run in runs for sheet in sorted((run / "pictures").glob("*.png"))]
    return {f"{sheet.parent.parent.name}: {sheet.stem}": sheet.read_bytes() for sheet in sheets}


def _table(results: Sequence[EvaluationResult]) -> str:
    figures = figure_names(results)
    words = ("run", "method", "dataset", "stage")
    head = [f"<th>{word}</th>" for word in words]
    head += [f'<th class="n">{name}</th>' for name in ("images", *(FIGURES[figure] for figure in figures))]
    rows = []
    for result in results:
        cells = [f"<td>{escape(getattr(result, word))}</td>" for word in words]
        numbers = [str(result.images), *(with_spread(result, figure) for figure in figures)]
        rows.append("<tr>" + "".join(cells + [f'<td class="n">{number}</td>' for number in numbers]) + "</tr>")
    return f'<div class="wide"><table><tr>{"".join(head)}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _classes(result: EvaluationResult) -> str:
    """Bars of the IoU of every class, best first; classes without ground truth come last."""
    classes = sorted(result.per_class, key=lambda entry: 1.0 if entry.iou is None else -entry.iou)
    groups = [name for name in ("seen", "unseen") if any(_group(entry) == name for entry in classes)]
    key = "".join(f'<span style="background: var(--{name})"></span>{name}' for name in groups)
    bars = "\n".join(
        f'<li><span class="name" title="{escape(entry.name)}">{escape(entry.name)}</span><span class="track">'
        f'<span class="bar {_group(entry)}" style="width: {100 * (entry.iou or 0):.1f}%"></span></span>'
        f"<span>{percent(entry.iou)}</span></li>"
        for entry in classes
    )
    heading = f"{result.method} on {result.dataset}"
    if result.run:
        heading += f" ({result.run}, {result.stage})"
    return (
        f'<h2>{escape(heading)}</h2>\n<p class="note key">IoU of each class, percent{key}</p>\n'
        f'<ul class="classes">\n{bars}\n</ul>'
    )


def _group(entry: ClassResult) -> str:
    return "all" if entry.seen is None else "seen" if entry.seen else "unseen"


def figure(name: str, data: bytes) -> str:
    """Put a PNG file into a page, with what stands below it."""
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{encoded}" alt="{escape(name)}">'
        f'<figcaption class="note">{escape(name)}</figcaption></figure>'
    )
