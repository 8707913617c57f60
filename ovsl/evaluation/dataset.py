"""The evaluation of one dataset: what its images count for, and the result that they add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovsl.data.batches import EvaluationBatch, EvaluationTask
from ovsl.detections import TRUTHS, precision_scores
from ovsl.errors import InputError
from ovsl.evaluation.diagnosis import Diagnosis
from ovsl.evaluation.image_counts import ImageCounting
from ovsl.evaluation.segmenter import Segmenter
from ovsl.inference import Segmentation
from ovsl.metrics import (
    AbsentClasses,
    CityscapesAveragePrecision,
    MaskAveragePrecision,
    OpenVocabularyIoU,
    PanopticQuality,
)
from ovsl.metrics.confusion import ConfusionCounts
from ovsl.metrics.summed import summed
from ovsl.results import ClassResult, EvaluationResult
from ovsl.results.bootstrap import PRECISION, Interval, intervals
from ovsl.results.confusion import Confusion
from ovsl.results.image_counts import ImageCounts
from ovsl.scores import PIXELS, SEGMENTS, panoptic_scores, seen_and_unseen, semantic_scores

MOST_CLASSES = 1024
"""Classes of the largest confusion that a plain test counts, 8 MB."""
_BY_SYNONYMS = ("mIoU_seen_by_synonyms", "mIoU_unseen_by_synonyms", "hIoU_by_synonyms")


@dataclass(frozen=True)
class RunHeader:
    """What a result says of the run that it comes from.

    Args:
        run: Name of the run.
        method: Name of the method.
        stage: `test` or `validate`.
        step: Training steps that the weights had seen.
    """

    run: str
    method: str
    stage: str
    step: int


class DatasetEvaluation:
    """Segments the images of one dataset and counts.

    Metrics are made on every process alike, also on one that gets no image: they are computed by all together.

    Args:
        task: The dataset.
        segmenter: The method with the words of the dataset.
        absent: How mIoU treats classes that the ground truth lacks, see `OpenVocabularyIoU`.
        device: Where counts are kept.
        seen_by_synonyms: Seen marks by the rule that FC-CLIP published, where they differ from those of the segmenter;
            the result then has the means of both.
        count_images: Whether the counts of each image are kept too, for intervals and comparisons, and the confusion
            of the classes.
        diagnose: Whether what a diagnosis needs is counted too.
    """

    def __init__(
        self,
        task: EvaluationTask,
        segmenter: Segmenter,
        absent: AbsentClasses,
        device: torch.device | str = "cpu",
        seen_by_synonyms: Sequence[bool] | None = None,
        count_images: bool = False,
        diagnose: bool = False,
    ) -> None:
        self.task = task
        self.seen_by_synonyms = seen_by_synonyms
        self.segmenter = segmenter
        vocabulary = segmenter.vocabulary
        num_classes, seen, things = len(vocabulary), vocabulary.seen, vocabulary.things
        self.iou = OpenVocabularyIoU(num_classes, seen, vocabulary.ignore_index, absent).to(device)
        self.panoptic_quality: PanopticQuality | None = None
        self.average_precision: MaskAveragePrecision | None = None
        if segmenter.method.predicts_masks and things is not None:
            self._is_thing = torch.tensor(things, device=device)
            self.panoptic_quality = PanopticQuality(num_classes, things, seen).to(device)
            rules = CityscapesAveragePrecision if task.average_precision == "cityscapes" else MaskAveragePrecision
            self.average_precision = rules(num_classes, seen).to(device)
        self.image_counting = ImageCounting(self._names()) if count_images else None
        self.confusion: ConfusionCounts | None = None
        if diagnose or (count_images and num_classes <= MOST_CLASSES):
            self.confusion = ConfusionCounts(num_classes, vocabulary.ignore_index).to(device)
        self.diagnosis = Diagnosis(num_classes, seen, vocabulary.ignore_index).to(device) if diagnose else None

    def update(self, batch: EvaluationBatch) -> list[Segmentation]:
        """Segment a batch and count it.

        Args:
            batch: With `semantic`; segments are counted where it has them too.

        Returns:
            What was found in each image.
        """
        counts_segments = self.panoptic_quality is not None and "segment_ids" in batch
        if self.diagnosis is None:
            found = self.segmenter(batch["image"], batch["original_size"], counts_segments, batch.get("regions"))
        else:
            found = [self._diagnose(self.diagnosis, batch, i, counts_segments) for i in range(len(batch["image"]))]
        for index, segmentation in enumerate(found):
            before = self._sums()
            self.iou.update(segmentation.labels, batch["semantic"][index])
            if self.confusion is not None:
                self.confusion.update(segmentation.labels, batch["semantic"][index])
            with_segments = counts_segments and self._count_segments(segmentation, batch, index)
            if self.image_counting is not None:
                detections = self.average_precision.last_image() if with_segments and self.average_precision else None
                self.image_counting.add(batch["id"][index], self._sums() - before, detections)
        return found

    def _diagnose(self, diagnosis: Diagnosis, batch: EvaluationBatch, index: int, segments: bool) -> Segmentation:
        regions, truth = batch.get("regions"), batch.get("segment_ids")
        image = batch["image"][index]
        region = None if regions is None else regions[index]
        trace = self.segmenter.trace(image, batch["original_size"][index], segments, region)
        size = (image.shape[-2], image.shape[-1])
        diagnosis.update(trace, size, batch["semantic"][index], None if truth is None else truth[index])
        return trace.found

    def _names(self) -> tuple[str, ...]:
        """Names of the sums that images add to."""
        if self.panoptic_quality is None or self.average_precision is None:
            return PIXELS
        return (*PIXELS, *SEGMENTS, *TRUTHS[: len(self.average_precision.areas)])

    def _sums(self) -> Tensor:
        """Stack these sums, `(len(names), C)`."""
        sums: list[Tensor] = [getattr(self.iou, name) for name in PIXELS]
        if self.panoptic_quality is not None and self.average_precision is not None:
            sums += [getattr(self.panoptic_quality, name) for name in SEGMENTS]
            sums += self.average_precision.truths
        return torch.stack(sums)

    def _count_segments(self, found: Segmentation, batch: EvaluationBatch, index: int) -> bool:
        """Count the segments of an image, where there are any to count; say whether there were."""
        if self.panoptic_quality is None or self.average_precision is None:
            return False
        if found.panoptic is None or found.instances is None:  # a sliding window does not join its masks
            return False
        ids, classes = batch["segment_ids"][index], batch["segment_classes"][index]
        crowd = batch["segment_crowd"][index]
        self.panoptic_quality.update(found.panoptic.segment_ids, found.panoptic.classes, ids, classes, crowd)
        if "instance_masks" in batch:
            labels, masks = batch["instance_classes"][index], batch["instance_masks"][index]
            crowd = batch["instance_crowd"][index]
        else:
            things = self._is_thing[classes].nonzero().flatten()
            labels, masks, crowd = classes[things], ids == things[:, None, None] + 1, crowd[things]
        instances = found.instances
        self.average_precision.update(
            instances.scores, instances.labels, instances.masks, labels, masks, crowd, void=ids == 0
        )
        return True

    def result(self, header: RunHeader) -> EvaluationResult:
        """Divide the counts of all processes; every process has to call this.

        Args:
            header: What the result says of the run.
        """
        values = self.iou.compute()
        metrics = {name: _number(values[name].item()) for name in self.iou.scalars}
        if self.seen_by_synonyms is not None:
            means = seen_and_unseen(values["iou"].numpy(), self.seen_by_synonyms, _BY_SYNONYMS)
            metrics |= {name: _number(float(value)) for name, value in means.items()}
        for metric in (self.panoptic_quality, self.average_precision):
            if metric is not None:
                metrics |= _segment_metrics(metric)
        counts = None if self.image_counting is None else self.image_counting.gather()
        if not int(values["images"]):
            raise InputError(
                f"Not one image of '{self.task.name}' was evaluated: all were skipped, or there is none; a result of "
                "nothing is not written."
            )
        vocabulary = self.segmenter.vocabulary
        seen = vocabulary.seen or (None,) * len(vocabulary)
        columns = (values["iou"].tolist(), values["accuracy"].tolist(), values["pixels"].tolist())
        return EvaluationResult(
            run=header.run,
            method=header.method,
            stage=header.stage,
            dataset=self.task.name,
            images=int(values["images"]),
            step=header.step,
            absent_classes=self.iou.absent,
            metrics=metrics,
            per_class=tuple(
                ClassResult(name, is_seen, _number(iou), _number(accuracy), pixels)
                for name, is_seen, iou, accuracy, pixels in zip(vocabulary.classes, seen, *columns, strict=True)
            ),
            published={name: value / 100 for name, value in self.task.published.items()},
            intervals={} if counts is None else self._intervals(counts, metrics),
            image_counts=counts,
            confusion=None if self.confusion is None else Confusion.of(summed(self.confusion).numpy()),
            diagnosis=None if self.diagnosis is None else self.diagnosis.counts(self.segmenter.words),
        )

    def _intervals(self, counts: ImageCounts, metrics: Mapping[str, float | None]) -> dict[str, Interval]:
        """Intervals of all metrics, by drawing images again."""

        def score(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            scores = semantic_scores(sums, self.iou.seen, self.iou.absent)
            if self.seen_by_synonyms is not None:
                scores |= seen_and_unseen(scores["iou"], self.seen_by_synonyms, _BY_SYNONYMS)
            if self.panoptic_quality is not None and "PQ" in metrics:
                scores |= panoptic_scores(sums, self.panoptic_quality.things, self.panoptic_quality.seen)
            if PRECISION in sums:
                scores |= precision_scores(sums[PRECISION], self.iou.seen)
            return {name: scores[name] for name in metrics if name in scores}

        return intervals(counts, score)


def _segment_metrics(metric: PanopticQuality | MaskAveragePrecision) -> dict[str, float | None]:
    values = summed(metric)
    return {name: _number(values[name].item()) for name in metric.scalars} if values["images"] else {}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
