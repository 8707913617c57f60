"""Where errors come from: what is counted beside the scores, in the same pass, when a diagnosis is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from ovsl.evaluation.segmenter import Trace
from ovsl.evaluation.words import Words
from ovsl.inference import MaskPrediction, Size
from ovsl.inference.rows import Rows
from ovsl.metrics.boundary import boundary_counts
from ovsl.metrics.margins import margin_counts
from ovsl.metrics.segmentation import count_pixels
from ovsl.metrics.summed import summed
from ovsl.results.diagnosis_counts import DiagnosisCounts
from ovsl.scores import BINS

COUNTS = ("boundary", "true_masks", "true_classes")
"""States of the form intersection, area of the prediction, area of the target, each of every class."""


class Diagnosis(Metric):
    """Counts of one dataset from which `ovsl.results.diagnosis` tells where errors come from.

    The oracles are those of *What Holds Back Open-Vocabulary Segmentation?* (arXiv 2508.04211). Of a method that
    predicts masks, by its queries: a true mask gets the class of the query whose mask overlaps it most, and a query,
    where it has the highest product of class and mask probability, gets the class that most of its pixels have; queries
    that say no object take no part. Of a dense method, which has no masks, a true mask gets the class with the highest
    mean score over its pixels. So does one that answers in several views, whose masks are not joined.

    Args:
        num_classes: C.
        seen: Whether each class was seen; None where that is not known.
        ignore_index: Target value of pixels that are not evaluated.
    """

    full_state_update = False

    margins: Tensor
    masked_images: Tensor

    def __init__(self, num_classes: int, seen: Sequence[bool] | None, ignore_index: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.seen = None if seen is None or len(set(seen)) == 1 else torch.tensor(seen)
        shapes = {"margins": (2, num_classes, BINS), "masked_images": ()}
        for name, shape in {**shapes, **dict.fromkeys(COUNTS, (3, num_classes))}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, trace: Trace, size: Size, target: Tensor, segment_ids: Tensor | None = None) -> None:
        """Count one image.

        Args:
            trace: Of its segmentation.
            size: Of the image that the network saw, without padding.
            target: Labels in 0..C-1 or `ignore_index`, int64 `(H, W)`.
            segment_ids: True segments, integers `(H, W)`, 0 for none; without them the true masks are the areas of
                the classes.
        """
        labels = trace.found.labels
        self._add("boundary", boundary_counts(labels, target, self.num_classes, self.ignore_index))
        if segment_ids is None:
            segment_ids = torch.where(target == self.ignore_index, -1, target) + 1
        (first, *others) = trace.predictions
        named = self._name_regions(trace, target, segment_ids.long())
        if isinstance(first, MaskPrediction) and not others:
            rows = first.mask_rows(size).resized((target.shape[0], target.shape[1]))
            classes, certainty = _query_classes(first, trace.positions)
            named = _name_by_queries(rows, classes, certainty > 0, segment_ids.long(), labels)
            self._add("true_classes", self._count(self._with_true_classes(rows, certainty, target), target))
            self.masked_images = self.masked_images + 1
        self._add("true_masks", self._count(named, target))

    def counts(self, words: Words) -> DiagnosisCounts:
        """Gather the counts of all processes, with how similar the names are; every process has to call this.

        Args:
            words: What the method was asked.
        """
        states = {name: values.numpy() for name, values in summed(self).items()}
        return DiagnosisCounts(
            boundary=states["boundary"],
            true_masks=states["true_masks"],
            true_classes=states["true_classes"] if states["masked_images"] else None,
            margins=None if self.seen is None else states["margins"],
            similarity=name_similarity(words).cpu().numpy(),
        )

    def compute(self) -> dict[str, Tensor]:
        """Take the sums over all processes, on the CPU; see `counts`."""
        names = ("margins", "masked_images", *COUNTS)
        return {name: getattr(self, name).cpu() for name in names}

    def _add(self, name: str, counts: Sequence[Tensor]) -> None:
        setattr(self, name, getattr(self, name) + torch.stack(list(counts)))

    def _count(self, labels: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return count_pixels(labels, target, self.num_classes, self.ignore_index)

    def _name_regions(self, trace: Trace, target: Tensor, ids: Tensor) -> Tensor:
        """Name the true masks by their mean scores, and count margins on the way."""
        row = 0
        sums = torch.zeros(int(ids.max()) + 1, self.num_classes, device=target.device)
        for band in trace.scores.bands(max(prediction.num_channels for prediction in trace.predictions)):
            scores = band[0].float()
            rows = slice(row, row := row + len(scores))
            flat = scores.flatten(0, 1)
            sums.index_add_(0, ids[rows].flatten(), flat)
            if self.seen is not None:
                seen = self.seen.to(target.device)
                counted = margin_counts(flat, target[rows].flatten(), seen, self.ignore_index)
                self.margins = self.margins + torch.stack(counted)
        return torch.where(ids > 0, sums.argmax(dim=1)[ids], trace.found.labels)

    def _with_true_classes(self, mask_rows: Rows, certainty: Tensor, target: Tensor) -> Tensor:
        """Give the predicted masks the class that most of their pixels have."""
        queries = len(certainty)
        (owner,) = mask_rows.then(lambda logits: logits.sigmoid() * certainty).labels(queries)
        kept = target != self.ignore_index
        pairs = owner[kept] * self.num_classes + target[kept]
        table = torch.bincount(pairs, minlength=queries * self.num_classes).view(queries, self.num_classes)
        return table.argmax(dim=1)[owner]


def _query_classes(prediction: MaskPrediction, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Class of each query in the vocabulary, and how certain it is, 0 where it says no object: `(Q,)` each."""
    certainty, classes = prediction.class_scores[0].max(dim=-1)
    if prediction.no_object_scores is not None:
        certainty = certainty.masked_fill(certainty < prediction.no_object_scores[0], 0)
    return classes if positions is None else positions[classes], certainty


def _name_by_queries(mask_rows: Rows, classes: Tensor, speaks: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Name the true masks by the query that overlaps each most, by IoU.

    Args:
        mask_rows: Mask logits at the size of the truth, of one image and Q queries.
        classes: Class of each query, `(Q,)`.
        speaks: Queries that take part, bool `(Q,)`.
        ids: True segments, 0 for none, int64 `(H, W)`.
        labels: Answer where there is no true mask, or none that a query overlaps, `(H, W)`.
    """
    row = 0
    common = torch.zeros(int(ids.max()) + 1, len(classes), device=ids.device)
    for band in mask_rows.bands(len(classes)):
        inside = ((band[0] > 0) & speaks).float()
        rows = slice(row, row := row + len(inside))
        # Counts of pixels are exact in float32 up to 2^24.
        common.index_add_(0, ids[rows].flatten(), inside.flatten(0, 1))
    area = torch.bincount(ids.flatten(), minlength=len(common)).to(common)
    overlap, query = (common / (area[:, None] + common.sum(dim=0) - common).clamp(min=1)).max(dim=1)
    found = (overlap > 0)[ids] & (ids > 0)
    return torch.where(found, classes[query][ids], labels)


def name_similarity(words: Words) -> Tensor:
    """Compare the names of all classes by their text embeddings.

    Embeddings of one text tower lie in a narrow cone; so their mean is taken away before the cosine, which then is 0 on
    average and tells names apart. Of several names of a class the nearest count.

    Args:
        words: Text embeddings of the classes that the method can predict.

    Returns:
        float16 `(C, C)`, -1..1; -1 for classes that it cannot predict.
    """
    text = words.text
    vectors = functional.normalize(text.vectors.float() - text.vectors.float().mean(dim=0), dim=-1)
    similarity = text.per_class(text.per_class(vectors @ vectors.T, dim=0), dim=1)
    if words.positions is None:
        return similarity.half()
    everything = similarity.new_full((len(words.vocabulary), len(words.vocabulary)), -1.0)
    places = words.positions
    index = places[:, None] * len(words.vocabulary) + places
    return (
        everything.flatten().scatter_reduce(0, index.flatten(), similarity.flatten(), "amax").view_as(everything).half()
    )
