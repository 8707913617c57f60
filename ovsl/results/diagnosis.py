"""Where errors come from, told from the counts of a test: oracles, stolen pixels, offsets, contours, near names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ovsl.results.diagnosis_counts import DiagnosisCounts
from ovsl.results.result import EvaluationResult
from ovsl.scores import PIXELS, AbsentClasses, divide, margin_edges, semantic_scores

SIMILAR = 0.5
"""Centred cosine of the text embeddings of two names from which on they count as near, see `name_similarity`."""

PAIRS = 12
"""Pairs of names that are listed."""

SHOWN = ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU", "pAcc")


def diagnose(
    result: EvaluationResult, counts: DiagnosisCounts, confusion: np.ndarray, similar: float = SIMILAR
) -> dict[str, Any]:
    """Tell where the errors of a result come from.

    Args:
        result: Of a test.
        counts: Of its diagnosis.
        confusion: Pixels of each true class that were called each class, `(C, C)`.
        similar: See `SIMILAR`.

    Returns:
        What `ovsl report --diagnosis` writes as JSON: fractions in 0..1, None where undefined. `scores` of the test, of
        the bands along contours, with true masks, with true classes (mask methods), with near names forgiven;
        `true_masks_named_by`, `matched queries` or `mean scores`; `stolen`, `offsets` (where some classes are unseen)
        and `near_names`.
    """
    names = [entry.name for entry in result.per_class]
    marks = [entry.seen for entry in result.per_class]
    seen = None if None in marks else np.array(marks, bool)
    absent: AbsentClasses = "zero" if result.absent_classes == "zero" else "skip"
    near = counts.similarity.astype(np.float64) >= similar
    np.fill_diagonal(near, False)

    def scores(table: np.ndarray) -> dict[str, float | None]:
        values = semantic_scores(dict(zip(PIXELS, table, strict=True)), _marks(seen), absent)
        return {name: _number(values[name]) for name in SHOWN}

    tables = {
        "measured": _pixels(confusion),
        "contours": counts.boundary,
        "true_masks": counts.true_masks,
        "true_classes": counts.true_classes,
        "near_names_forgiven": _pixels(forgiven(confusion, near)),
    }
    told: dict[str, Any] = {
        **{name: getattr(result, name) for name in ("run", "method", "dataset", "images", "step", "absent_classes")},
        "scores": {name: scores(table) for name, table in tables.items() if table is not None},
        "true_masks_named_by": "mean scores" if counts.true_classes is None else "matched queries",
        "near_names": near_names(confusion, near, counts.similarity, names, similar),
    }
    if seen is not None and counts.margins is not None:
        told["stolen"] = stolen(confusion, seen, names)
        told["offsets"] = offset_curve(counts.margins, confusion.sum(1), seen, absent)
    return told


def stolen(confusion: np.ndarray, seen: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Tell what pixels of seen and of unseen classes were called, and which seen words take unseen pixels.

    Args:
        confusion: `(C, C)`, truth by prediction.
        seen: bool `(C,)`.
        names: Of the classes.

    Returns:
        `unseen` and `seen`: their pixels and the shares of them that were called rightly, another unseen class, another
        seen class. `pairs`: the seen words that take most unseen pixels, with their share of the true class.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    groups: dict[str, Any] = {}
    for group, rows in (("unseen", ~seen), ("seen", seen)):
        pixels = confusion[rows].sum()
        called = {
            "right": confusion.diagonal()[rows].sum(),
            "other_unseen": wrong[rows][:, ~seen].sum(),
            "other_seen": wrong[rows][:, seen].sum(),
        }
        groups[group] = {"pixels": int(pixels)} | {
            name: _number(divide(value, pixels)) for name, value in called.items()
        }
    return groups | {"pairs": _pairs(np.where(~seen[:, None] & seen, wrong, 0), confusion.sum(1), names)}


def offset_curve(
    margins: np.ndarray, target_area: np.ndarray, seen: np.ndarray, absent: AbsentClasses
) -> dict[str, Any]:
    """Follow the scores over an offset that is added to all scores of unseen classes.

    Args:
        margins: See `DiagnosisCounts.margins`.
        target_area: Pixels of each class, `(C,)`.
        seen: bool `(C,)`.
        absent: See `semantic_scores`.

    Returns:
        `offset`, `share_unseen` (of the pixels that is given to unseen classes), `mIoU_seen`, `mIoU_unseen` and `hIoU`
        as lists; `now`, the point without offset, and `best`, that of the highest hIoU. Two areas that know no scale of
        the offset, and so compare methods without their calibration: `area_hIoU`, below hIoU over the offset, which is
        measured by `share_unseen`; `area_seen_unseen`, below the best unseen mIoU at each seen mIoU or more, the
        seen-unseen curve of Chao et al. (ECCV 2016, arXiv 1605.04253).
    """
    edges = margin_edges()
    below = np.concatenate([np.zeros((2, len(seen), 1), np.int64), margins.cumsum(2)], axis=2)
    # A pixel goes to the seen class as long as the offset is at most its margin.
    predicted, right = np.where(seen[:, None], below[..., -1:] - below, below).swapaxes(1, 2)
    values = semantic_scores(
        dict(zip(PIXELS, (right, predicted, np.broadcast_to(target_area, right.shape)), strict=True)),
        _marks(seen),
        absent,
    )
    chosen = ("mIoU_seen", "mIoU_unseen", "hIoU")

    def point(index: int) -> dict[str, float | None]:
        return {"offset": float(edges[index])} | {name: _number(values[name][index]) for name in chosen}

    share = predicted[:, ~seen].sum(1) / max(1, target_area.sum())
    return {
        "offset": edges.tolist(),
        "share_unseen": share.tolist(),
        **{name: [_number(value) for value in values[name]] for name in chosen},
        "now": point(len(edges) // 2),
        "best": point(int(np.nanargmax(values["hIoU"]))) if np.isfinite(values["hIoU"]).any() else None,
        "area_hIoU": _number(np.trapezoid(values["hIoU"], share)),
        "area_seen_unseen": _number(np.array(tradeoff_area(values["mIoU_seen"], values["mIoU_unseen"]))),
    }


def tradeoff_area(seen: np.ndarray, unseen: np.ndarray) -> float:
    """Area below the best unseen score that is to be had with each seen score or more.

    >>> tradeoff_area(np.array([0.8, 0.4, 0.0]), np.array([0.0, 0.5, 0.25]))
    0.2
    """
    order = np.argsort(-seen, kind="stable")
    best = np.maximum.accumulate(unseen[order])
    return float(np.sum(best * -np.diff(np.append(seen[order], 0.0))))


def near_names(
    confusion: np.ndarray, near: np.ndarray, similarity: np.ndarray, names: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Tell how much of what is wrong lies between names that are near.

    Args:
        confusion: `(C, C)`.
        near: Which names are near, bool `(C, C)`, the diagonal left out.
        similarity: Of the names.
        names: Of the classes.
        threshold: From which on they are near.
    """
    wrong = int(confusion.sum() - confusion.diagonal().sum())
    between = int(confusion[near].sum())
    pairs = _pairs(np.where(near, confusion, 0), confusion.sum(1), names)
    index = {name: place for place, name in enumerate(names)}
    for pair in pairs:
        pair["similarity"] = float(similarity[index[pair["truth"]], index[pair["prediction"]]])
    return {
        "threshold": threshold,
        "wrong_pixels": wrong,
        "between_near_names": _number(divide(np.array(between), np.array(wrong))),
        "pairs_of_near_names": int(near.sum()) // 2,
        "pairs": pairs,
    }


def forgiven(confusion: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Count pixels that were called by a near name as right."""
    moved = np.where(near, confusion, 0)
    return confusion - moved + np.diag(moved.sum(1))


def _pixels(confusion: np.ndarray) -> np.ndarray:
    return np.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])


def _pairs(table: np.ndarray, target_area: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """List the largest entries of a table of true and predicted classes."""
    order = np.argsort(-table, axis=None, kind="stable")[:PAIRS]
    found = []
    for truth, prediction in zip(*np.unravel_index(order, table.shape), strict=True):
        if pixels := int(table[truth, prediction]):
            share = pixels / int(target_area[truth])
            found.append({"truth": names[truth], "prediction": names[prediction], "pixels": pixels, "share": share})
    return found


def _marks(seen: np.ndarray | None) -> list[bool] | None:
    return None if seen is None else seen.tolist()


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def table_rows(told: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float | None]]]:
    """Scores by what they are called in tables, in order."""
    titles = {
        "measured": "as it is",
        "true_masks": "true masks, predicted classes",
        "true_classes": "predicted masks, true classes",
        "near_names_forgiven": "near names forgiven",
        "contours": "along contours (boundary IoU)",
    }
    return [(title, told["scores"][name]) for name, title in titles.items() if name in told["scores"]]
