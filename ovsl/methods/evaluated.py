"""Thin hooks of Lightning into evaluation: validate, test and predict of any method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from lightning.pytorch import LightningModule

from ovsl.data import SegmentationDataModule
from ovsl.data.batches import EvaluationBatch, EvaluationTask
from ovsl.evaluation import DatasetEvaluation, EpisodeEvaluation, Evaluation, RunHeader, Segmenter
from ovsl.inference import Segmentation
from ovsl.metrics import AbsentClasses
from ovsl.results import EvaluationResult
from ovsl.vocabulary import Vocabulary


class EvaluatedModule(LightningModule, ABC):
    """A module whose evaluation loops ask its segmenter.

    Attributes:
        evaluation: The datasets of the running verb.
        evaluation_results: What the last one found.
        absent_classes: How mIoU treats classes that the ground truth of a dataset lacks.
        mixed_precision_evaluation: Whether evaluation runs in the trainer's mixed precision.
    """

    evaluation: Evaluation
    evaluation_results: list[EvaluationResult]
    absent_classes: AbsentClasses
    mixed_precision_evaluation: bool

    @property
    @abstractmethod
    def title(self) -> str:
        """What tables and pictures call the method."""

    @property
    @abstractmethod
    def trained_steps(self) -> int:
        """Optimiser steps behind the current weights."""

    @abstractmethod
    def check_weights(self) -> None:
        """Refuse weights that are not finite."""

    @abstractmethod
    def segmenter(self, vocabulary: Vocabulary, dataset: str | None = None) -> Segmenter:
        """Bind words to this method."""

    @abstractmethod
    def seen_by_synonyms(self, vocabulary: Vocabulary) -> tuple[bool, ...] | None:
        """Seen marks by another rule than that of the words, where the two differ."""

    @property
    def data(self) -> SegmentationDataModule:
        """The data of the running trainer."""
        data: SegmentationDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def on_validation_start(self) -> None:
        """Bind the words of every dataset of the verb, to weights that are numbers."""
        self.check_weights()
        self.evaluation = Evaluation([self._dataset_evaluation(task) for task in self.data.evaluation_tasks])

    def _dataset_evaluation(self, task: EvaluationTask) -> DatasetEvaluation:
        if task.episodes:
            return EpisodeEvaluation(task, lambda words: self.segmenter(words, task.name), self.device)
        segmenter = self.segmenter(task.vocabulary, task.name)
        synonyms = self.seen_by_synonyms(task.vocabulary)
        return DatasetEvaluation(task, segmenter, self.absent_classes, self.device, synonyms)

    def _evaluation_precision(self) -> AbstractContextManager[None]:
        if self.mixed_precision_evaluation:
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    on_test_start = on_predict_start = on_validation_start

    def validation_step(self, batch: EvaluationBatch, batch_index: int, dataloader_idx: int = 0) -> list[Segmentation]:
        """Segment a batch and count it; what was found is for callbacks."""
        with self._evaluation_precision():
            return self.evaluation.update(dataloader_idx, batch)

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: EvaluationBatch, batch_index: int, dataloader_idx: int = 0) -> list[Segmentation]:
        """Segment a batch, with panoptic maps where the method gives them."""
        with self._evaluation_precision():
            return self.evaluation.segment(dataloader_idx, batch)

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of every dataset."""
        self._finish_evaluation("validate", "val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the metrics of every dataset."""
        self._finish_evaluation("test", "test")

    def _finish_evaluation(self, stage: str, prefix: str) -> None:
        header = RunHeader(Path(self.trainer.default_root_dir).name, self.title, stage, self.trained_steps)
        self.evaluation_results = self.evaluation.results(header)
        # The trainer takes a figure of this name for the step of all: without it, points lie where the loop stands.
        self.log("step", float(self.trained_steps))
        for result in self.evaluation_results:
            # Every process logs the same value: the metric has summed its counts over all of them already.
            figures = {name: value for name, value in result.metrics.items() if value is not None}
            self.log_dict({f"{prefix}/{result.dataset}/{name}": value for name, value in figures.items()})
