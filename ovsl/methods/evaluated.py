"""A method that is asked: its words, its segmenter, and thin hooks of Lightning for validate, test and predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import torch

from ovsl.clip import FrozenCLIP, TextEncoder, ViTTower
from ovsl.data import EvaluationTransform, SegmentationDataModule
from ovsl.data.batches import EvaluationBatch, EvaluationTask
from ovsl.evaluation import DatasetEvaluation, EpisodeEvaluation, Evaluation, RunHeader, Segmenter, Words
from ovsl.inference import Inference, Segmentation
from ovsl.methods.recorded import RecordedModule
from ovsl.metrics import AbsentClasses
from ovsl.results import EvaluationResult
from ovsl.vocabulary import Vocabulary


class EvaluatedModule(RecordedModule, ABC):
    """A module whose evaluation loops ask its segmenter.

    Args:
        clip: The CLIP of the method.
        inference: How an image becomes scores or segments.
        inference_for: Another inference for some evaluation datasets, by their names.
        absent_classes: How mIoU treats classes that the ground truth of a dataset lacks.
        mixed_precision_evaluation: Whether evaluation runs in the trainer's mixed precision.

    Attributes:
        evaluation: The datasets of the running verb.
        evaluation_results: What the last one found.
        diagnose: Whether a test counts what a diagnosis needs too.
    """

    predicts_masks: bool = False
    """Whether `forward` returns a `MaskPrediction`, which panoptic quality needs."""

    needs_regions: bool = False
    """Whether `forward` takes region maps, integers `(B, H, W)`, as its third argument."""

    photo_transform: ClassVar[EvaluationTransform] = EvaluationTransform(512, 2048, enlarge=False, min_size=64)
    """Size at which photos go through the network unless the user says another: that of the published tests, where it
    does not enlarge them. Photos that are tiny or all but a line are brought to something that every network takes."""

    def __init__(
        self,
        clip: FrozenCLIP,
        inference: Inference,
        inference_for: dict[str, Inference],
        absent_classes: AbsentClasses,
        mixed_precision_evaluation: bool,
    ) -> None:
        super().__init__(clip)
        self.inference = inference
        self.inference_for = inference_for
        self.absent_classes = absent_classes
        self.mixed_precision_evaluation = mixed_precision_evaluation
        self.evaluation = Evaluation([])
        self.evaluation_results: list[EvaluationResult] = []
        self.diagnose = False

    @property
    @abstractmethod
    def text_classifier(self) -> TextEncoder:
        """Embeds vocabularies."""

    @property
    def smallest_side(self) -> int:
        """Pixels below which no image goes through the image tower: one patch."""
        tower = self.clip.image_tower
        return tower.patch_size if isinstance(tower, ViTTower) else 1

    @property
    def method_name(self) -> str:
        """What tables and pictures call the method: its class, unless one class stands for several."""
        return type(self).__name__

    @property
    def title(self) -> str:
        """What tables and pictures call the method: a CLIP that knows no word shows in every one of them."""
        name = self.method_name
        return name if self.clip.pretrained else f"{name} (random CLIP)"

    def words(self, vocabulary: Vocabulary) -> Words:
        """Take a vocabulary to choose from in evaluation: the one place where seen classes are decided.

        A class is seen by an explicit split, or else by sharing a name with a class that the method trained on.
        """
        vocabulary = self.with_seen(vocabulary)
        return Words(vocabulary, self.text_classifier(vocabulary))

    def with_seen(self, vocabulary: Vocabulary) -> Vocabulary:
        """Mark the classes that share a name with one that was trained on, unless a split says which are seen."""
        if vocabulary.seen is not None or self.training_vocabulary is None:
            return vocabulary
        return vocabulary.with_seen_from(self.training_vocabulary, own_names=True)

    def seen_by_synonyms(self, vocabulary: Vocabulary) -> tuple[bool, ...] | None:
        """Seen marks by synonyms alone, as FC-CLIP published; None where they are those of `with_seen`."""
        if vocabulary.seen is not None or self.training_vocabulary is None:
            return None
        seen = vocabulary.with_seen_from(self.training_vocabulary).seen
        return None if seen == self.with_seen(vocabulary).seen else seen

    def segmenter(self, vocabulary: Vocabulary, dataset: str | None = None) -> Segmenter:
        """Bind words to this method.

        Args:
            vocabulary: The classes to choose from.
            dataset: Name of an evaluation dataset, which may have an inference of its own.
        """
        return Segmenter(self, vocabulary, self.inference_for.get(dataset or "", self.inference))

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
        test = bool(self.trainer.testing)
        if task.episodes:
            return EpisodeEvaluation(task, lambda words: self.segmenter(words, task.name), self.device, test)
        segmenter = self.segmenter(task.vocabulary, task.name)
        synonyms = self.seen_by_synonyms(task.vocabulary)
        diagnose = test and self.diagnose
        return DatasetEvaluation(task, segmenter, self.absent_classes, self.device, synonyms, test, diagnose)

    def _evaluation_precision(self) -> AbstractContextManager[None]:
        if self.mixed_precision_evaluation:
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    on_test_start = on_predict_start = on_validation_start

    def validation_step(  # type: ignore[override] # Lightning's own takes anything
        self, batch: EvaluationBatch, batch_index: int, dataloader_idx: int = 0
    ) -> list[Segmentation]:
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
