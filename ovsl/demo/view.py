"""What the page shows of an answer, as HTML: the photo below the labels, and a legend. No Gradio here.

Words come from whoever types them, and are escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ovsl.api import PhotoSegmentation
from ovsl.demo.answers import Answer
from ovsl.results.drawing import Segments, borders, colorize, colorize_segments, shrink

LONGEST_SIDE, LEGEND_ROWS, MISSING_WORDS = 1280, 30, 40
"""Pixels of a shown photo; found words with a row of their own; absent words that are named."""


def answers_html(answers: Sequence[Answer]) -> str:
    """Put the answers side by side: layers whose opacity is the CSS variable `--ovsl-opacity`, legends below.

    Args:
        answers: Of one photo.

    Returns:
        HTML for a page with `page.css`; pictures are inside it, at `LONGEST_SIDE` pixels at most.
    """
    return f'<div class="ovsl-answers">{"".join(map(_answer, answers))}</div>'


def _answer(answer: Answer) -> str:
    found, segments = answer.found, answer.segments
    height, width = found.labels.shape
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    photo = Image.fromarray(found.photo).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    labels = shrink(found.labels, size[1], size[0])
    colors = colorize(labels, found.vocabulary)
    colors[borders(labels)] = 0
    layers = [f'<img class="photo" alt="photo" src="{_data(photo, "JPEG")}">']
    layers.append(f'<img class="map words" alt="labels" src="{_data(Image.fromarray(colors), "PNG")}">')
    if segments is not None:
        shown = Segments(shrink(segments.ids, size[1], size[0]), segments.classes)
        drawn = Image.fromarray(colorize_segments(shown, found.vocabulary))
        layers.append(f'<img class="map segments" alt="segments" src="{_data(drawn, "PNG")}">')
    return (
        f'<figure class="ovsl-answer"><h3>{escape(answer.title)}'
        f"<small>{width} x {height} pixels, {answer.seconds:.1f} s</small></h3>"
        f'<div class="ovsl-layers">{"".join(layers)}<span class="ovsl-here"></span></div>'
        f"{_legend(found, segments)}</figure>"
    )


def _legend(found: PhotoSegmentation, segments: Segments | None) -> str:
    names, palette = found.vocabulary.classes, found.vocabulary.palette
    shares = np.bincount(found.labels.ravel(), minlength=len(names)) / found.labels.size
    counts = None if segments is None else np.bincount(segments.classes, minlength=len(names)).tolist()
    order = np.argsort(-shares, kind="stable")
    there = order[shares[order] > 0]
    rows = []
    for index in there[:LEGEND_ROWS].tolist():
        count = "" if counts is None else f" <small>{counts[index]} segment{'s' * (counts[index] != 1)}</small>"
        word, rgb = escape(names[index]), ",".join(map(str, palette[index]))
        rows.append(
            f'<li data-color="{rgb}" data-word="{word}"><span class="swatch" style="background: rgb({rgb})"></span>'
            f'<span class="word" title="{word}">{word}{count}</span>'
            f'<span class="track"><span class="bar" style="background: rgb({rgb}); width: {100 * shares[index]:.2f}%">'
            f'</span></span><span class="share">{100 * shares[index]:.1f} %</span></li>'
        )
    notes = []
    if len(more := there[LEGEND_ROWS:]):
        notes.append(f"{len(more)} more words on {100 * shares[more].sum():.1f} % of the photo.")
    if absent := order[shares[order] == 0].tolist():
        named = ", ".join(names[index] for index in sorted(absent)[:MISSING_WORDS])
        rest = f" and {len(absent) - MISSING_WORDS} more" if len(absent) > MISSING_WORDS else ""
        notes.append(f"Not found: {named}{rest}.")
    return f'<ul class="ovsl-legend">{"".join(rows)}</ul>' + "".join(
        f'<p class="ovsl-note">{escape(note)}</p>' for note in notes
    )


def _data(image: Image.Image, format: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
