"""Label maps as pictures: colours, overlays, legends, sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ovsl.vocabulary import Vocabulary

IGNORED_COLOR = (255, 255, 255)

plain_text = rc_context({"text.parse_math": False})
"""Names are shown as they are, also those with dollar signs, which would be formulas otherwise."""


@dataclass(frozen=True)
class Segments:
    """Segments of an image that do not overlap.

    Attributes:
        ids: Integers `(H, W)`: 0 where there is no segment, else 1..N.
        classes: Class of segments 1..N, integers `(N,)`.
    """

    ids: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Picture:
    """One evaluated image.

    Attributes:
        id: Name of the image.
        image: RGB, uint8 `(H, W, 3)`.
        prediction: Labels `(H, W)`.
        truth: Labels `(H, W)` or `ignore_index`; None where there is no ground truth.
        segments: Predicted segments; None where there are none.
        true_segments: Those of the ground truth, likewise.
        note: Stands below the image on a sheet.
    """

    id: str
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None = None
    segments: Segments | None = None
    true_segments: Segments | None = None
    note: str = ""


def colorize(labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Labels `(H, W)` as RGB uint8 `(H, W, 3)`; ignored pixels are white."""
    colors = np.array([*vocabulary.palette, IGNORED_COLOR], dtype=np.uint8)
    return colors[np.where(labels == vocabulary.ignore_index, len(vocabulary), labels)]


def colorize_segments(segments: Segments, vocabulary: Vocabulary) -> np.ndarray:
    """Give segments the colour of their class in a shade of their own, with black borders: RGB uint8 `(H, W, 3)`."""
    colors = np.array(vocabulary.palette, dtype=np.float64)[segments.classes]
    # Neighbouring numbers get shades far apart; the first of a class keeps its colour.
    rank = np.array([np.sum(segments.classes[:i] == c) for i, c in enumerate(segments.classes)], dtype=np.float64)
    shade = 1 - 0.55 * ((rank * 0.618) % 1)
    table = np.concatenate([np.array([IGNORED_COLOR], dtype=np.float64), colors * shade[:, None]])
    picture = table[segments.ids].round().astype(np.uint8)
    picture[borders(segments.ids)] = 0
    return picture


def shrink(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Take the nearest pixel for each of a smaller map or image `(height, width, ...)`."""
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[np.ix_(rows.astype(int), columns.astype(int))]


def reduced(picture: Picture, longest_side: int) -> Picture:
    """Make a picture smaller, its maps by their nearest pixel; one that is not larger stays as it is."""
    height, width = picture.prediction.shape
    factor = longest_side / max(height, width)
    if factor >= 1:
        return picture
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    image = Image.fromarray(picture.image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    truth, segments, true_segments = picture.truth, picture.segments, picture.true_segments
    return replace(
        picture,
        image=np.asarray(image),
        prediction=shrink(picture.prediction, height, width),
        truth=None if truth is None else shrink(truth, height, width),
        segments=segments and replace(segments, ids=shrink(segments.ids, height, width)),
        true_segments=true_segments and replace(true_segments, ids=shrink(true_segments.ids, height, width)),
    )


def borders(labels: np.ndarray) -> np.ndarray:
    """Mark the pixels whose left or upper neighbour has another label: bool `(H, W)`."""
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    return border


def overlay(image: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary, opacity: float = 0.55) -> np.ndarray:
    """Blend a label map over its image, class borders in black: RGB uint8 `(H, W, 3)`."""
    mixed = (1 - opacity) * image + opacity * colorize(labels, vocabulary)
    mixed[borders(labels)] = 0
    return mixed.round().astype(np.uint8)


def legend_patches(classes: Sequence[int], vocabulary: Vocabulary) -> list[Patch]:
    """Coloured squares with the names of classes; unseen ones are marked."""
    patches = []
    for index in classes:
        unseen = vocabulary.seen is not None and not vocabulary.seen[index]
        name = vocabulary.classes[index] + (" (unseen)" if unseen else "")
        red, green, blue = vocabulary.palette[index]
        color = (red / 255, green / 255, blue / 255)
        patches.append(Patch(facecolor=color, edgecolor="black", linewidth=0.5, label=name))
    return patches


def present_classes(maps: Sequence[np.ndarray], vocabulary: Vocabulary, most: int = 40) -> list[int]:
    """Classes that occur in label maps, ascending; the most frequent ones where there are too many for a legend."""
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    for labels in maps:
        counts += np.bincount(labels[labels != vocabulary.ignore_index], minlength=len(vocabulary))[: len(vocabulary)]
    frequent = np.argsort(-counts, kind="stable")[:most]
    return sorted(int(index) for index in frequent if counts[index])


@plain_text
def draw_sheet(pictures: Sequence[Picture], vocabulary: Vocabulary, title: str) -> np.ndarray:
    """Draw a sheet of pictures, a row each: image, ground truth, prediction; with a legend of class names.

    Returns:
        RGB, uint8 `(H, W, 3)`.
    """
    columns = ["image", "ground truth", "prediction", "true segments", "segments"]
    columns = [
        column for column in columns if any(_column(picture, column, vocabulary) is not None for picture in pictures)
    ]
    shown = [m for p in pictures for m in (p.truth, p.prediction) if m is not None]
    patches = legend_patches(present_classes(shown, vocabulary), vocabulary)
    # A row is as high as the highest picture needs it, within bounds.
    shape = min(max(picture.image.shape[0] / picture.image.shape[1] for picture in pictures), 2.0)
    note_height = 0.18 if any(picture.note for picture in pictures) else 0.0
    legend_columns = 4
    legend_height = 0.22 * math.ceil(len(patches) / legend_columns) + 0.3
    row_height = 2.4 * shape + 0.06 + note_height
    figure = Figure((2.4 * len(columns) + 0.3, row_height * len(pictures) + legend_height + 0.7), layout="constrained")
    grid = figure.subplots(len(pictures), len(columns), squeeze=False)
    for axes, picture in zip(grid, pictures, strict=True):
        for axis, column in zip(axes, columns, strict=True):
            axis.set_axis_off()
            drawn = _column(picture, column, vocabulary)
            if drawn is not None:
                axis.imshow(drawn, interpolation="nearest")
        axes[0].text(0, -0.02, picture.note, transform=axes[0].transAxes, va="top", fontsize=7)
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set_title(column, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles=patches, loc="outside lower center", ncols=legend_columns, fontsize=7, frameon=False)
    return _rasterize(figure, dpi=110)


def draw_overlays(
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray]], vocabulary: Vocabulary, title: str, columns: int = 4
) -> np.ndarray:
    """Draw labels over their images, in rows, with a legend of class names.

    Args:
        pictures: Name, image and labels of each, see `overlay`.
        vocabulary: The classes.
        title: Stands above the sheet.
        columns: Images in a row.

    Returns:
        RGB, uint8 `(H, W, 3)`.
    """
    patches = legend_patches(present_classes([labels for *_, labels in pictures], vocabulary), vocabulary)
    rows = math.ceil(len(pictures) / columns)
    tallest = max(image.shape[0] / image.shape[1] for _, image, _ in pictures)
    legend_height = 0.22 * math.ceil(len(patches) / 4) + 0.3
    size = (2.4 * columns + 0.3, (2.4 * min(tallest, 2.0) + 0.2) * rows + legend_height + 0.5)
    figure = Figure(size, layout="constrained")
    for axis, picture in zip_longest(figure.subplots(rows, columns, squeeze=False).ravel(), pictures):
        axis.set_axis_off()
        if picture is not None:
            name, image, labels = picture
            step = max(1, max(image.shape) // 800)  # more pixels than are drawn would cost memory only
            axis.imshow(overlay(image[::step, ::step], labels[::step, ::step], vocabulary), interpolation="nearest")
            axis.set_title(name[-36:], fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return _rasterize(figure, dpi=110)


def _column(picture: Picture, column: str, vocabulary: Vocabulary) -> np.ndarray | None:
    match column:
        case "image":
            return picture.image
        case "prediction":
            return colorize(picture.prediction, vocabulary)
        case "ground truth":
            return None if picture.truth is None else colorize(picture.truth, vocabulary)
    segments = picture.segments if column == "segments" else picture.true_segments
    return None if segments is None else colorize_segments(segments, vocabulary)


@plain_text
def draw_overlay(picture: Picture, vocabulary: Vocabulary, title: str = "") -> np.ndarray:
    """Draw a prediction over its photo, with a legend of the classes found, largest share first.

    Args:
        picture: A photo of any size, the picture being about 1000 pixels wide.
        vocabulary: The classes.
        title: Stands above the legend: who predicted.

    Returns:
        RGB, uint8 `(H, W, 3)`.
    """
    height, width = picture.image.shape[:2]
    counts = np.bincount(picture.prediction.ravel(), minlength=len(vocabulary))
    found = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]][:30]
    patches = legend_patches(found, vocabulary)
    for patch, index in zip(patches, found, strict=True):
        patch.set_label(f"{patch.get_label()}  {100 * counts[index] / counts.sum():.1f} %")
    inches = 6.4
    # All but a line, upright or lying, is drawn within bounds.
    figure = Figure((inches + 2.6, min(max(inches * height / width, 0.25 * len(found) + 0.8), 20.0)))
    edge = inches / (inches + 2.6)
    axis = figure.add_axes((0, 0, edge, 1))
    step = max(1, max(height, width) // 1400)  # more pixels than are drawn would cost memory only
    axis.imshow(overlay(picture.image[::step, ::step], picture.prediction[::step, ::step], vocabulary))
    axis.set_axis_off()
    figure.legend(
        handles=patches, loc="center left", bbox_to_anchor=(edge, 0.5), fontsize=9, frameon=False, title=title
    )
    return _rasterize(figure, dpi=110)


def _rasterize(figure: Figure, dpi: int) -> np.ndarray:
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
