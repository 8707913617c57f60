"""All datasets of a verb."""

from __future__ import annotations

from collections.abc import Sequence

from ovsl.data.batches import EvaluationBatch
from ovsl.evaluation.dataset import DatasetEvaluation, RunHeader
from ovsl.inference import Segmentation
from ovsl.results import EvaluationResult


class Evaluation:
    """The datasets of a `validate`, `test` or `predict`, in the order of the data loaders.

    Args:
        datasets: One evaluation each.
    """

    def __init__(self, datasets: Sequence[DatasetEvaluation]) -> None:
        self.datasets = list(datasets)

    def update(self, index: int, batch: EvaluationBatch) -> list[Segmentation]:
        """Segment and count a batch of one dataset; see `DatasetEvaluation.update`."""
        return self.datasets[index].update(batch)

    def segment(self, index: int, batch: EvaluationBatch) -> list[Segmentation]:
        """Segment a batch of photos; see `Segmenter.photos`."""
        segmenter = self.datasets[index].segmenter
        return segmenter.photos(batch["image"], batch["original_size"], batch.get("regions"))

    def results(self, header: RunHeader) -> list[EvaluationResult]:
        """Divide the counts of every dataset; see `DatasetEvaluation.result`."""
        return [dataset.result(header) for dataset in self.datasets]
