"""What every method shares: steps, evaluation over several datasets, logging, checkpoints without the frozen CLIP."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ovsl.clip import FrozenCLIP, SynonymRule, TextClassifier, TextEmbeddings, build_clip
from ovsl.errors import InputError
from ovsl.inference import Inference, Prediction, Segmentation, WholeImage, segment
from ovsl.losses import MaskTargets
from ovsl.methods.schedules import PolynomialSchedule, Schedule
from ovsl.metrics import AbsentClasses, EvaluationResult, OpenVocabularyIoU
from ovsl.metrics.average_precision import MaskAveragePrecision
from ovsl.metrics.panoptic import PanopticQuality
from ovsl.vocabulary import Vocabulary

Batch = dict[str, Any]
"""``image`` uint8, ``semantic`` int64, ``id``, in evaluation ``original_size``, and from panoptic data ``segment_ids``,
``segment_classes`` and ``segment_crowd``; see :class:`ovsl.data.SegmentationDataModule`."""


@dataclass
class CLIPSettings:
    """Which CLIP a method stands on; see :func:`ovsl.clip.build_clip`.

    Args:
        model: ``toy_vit``, ``toy_convnext``, or an open_clip model name such as ``ViT-B-16``.
        pretrained: open_clip tag, local weights file, or None.
        quick_gelu: Activation that a weights file was trained with; leave out with a tag.
        config: open_clip configuration of a model that has no name.
    """

    model: str = "toy_vit"
    pretrained: str | None = None
    quick_gelu: bool | None = None
    config: dict[str, Any] | None = None

    def build(self) -> FrozenCLIP:
        """Build the frozen model."""
        return build_clip(self.model, self.pretrained, self.quick_gelu, self.config)


class SegmentationModule(LightningModule):
    """A method of open-vocabulary semantic segmentation on a frozen CLIP.

    A subclass builds its network in ``__init__`` and gives :meth:`forward` and, if it trains, :meth:`losses`.
    Training, validation, test, prediction, logging and checkpoints are here and nowhere else.

    Args:
        clip: The CLIP that gives image features and text embeddings.
        templates: Prompt template set, see :func:`ovsl.vocabulary.load_templates`.
        synonyms: How the names of one class are merged: ``first``, ``mean`` or ``max``.
        inference: :class:`~ovsl.inference.WholeImage` or :class:`~ovsl.inference.SlidingWindow`.
        inference_for: Another inference for some evaluation datasets, by their names.
        absent_classes: How mIoU treats classes that the ground truth of a dataset lacks, see
            :class:`~ovsl.metrics.OpenVocabularyIoU`.
        optimizer: Called with the parameter groups.
        schedule: Learning-rate schedule over the run.
        train_clip: Substrings of CLIP parameter names that train with the method; all others are frozen.
    """

    trainable = True
    """Whether the method has anything to train; False for training-free ones."""

    predicts_masks = False
    """Whether :meth:`forward` returns a :class:`~ovsl.inference.MaskPrediction`, which panoptic quality needs."""

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        templates: str = "imagenet_80",
        synonyms: SynonymRule = "first",
        inference: Inference = WholeImage(),
        inference_for: dict[str, Inference] | None = None,
        absent_classes: AbsentClasses = "skip",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = PolynomialSchedule(),
        train_clip: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.clip = clip.build()
        self.clip.freeze(train_clip)
        self.text_classifier = TextClassifier(self.clip, templates, synonyms)
        self.inference = inference
        self.inference_for = inference_for or {}
        self.absent_classes = absent_classes
        self.optimizer = optimizer
        self.schedule = schedule
        # Checkpoints leave the frozen CLIP out; `on_load_checkpoint` is stricter than Lightning's own check.
        self.strict_loading = False
        self.training_vocabulary: Vocabulary | None = None
        self.evaluation_results: list[EvaluationResult] = []
        self.settings: dict[str, Any] | None = None
        self._metrics = nn.ModuleList()
        self._segment_metrics: list[list[Any]] = []
        self.evaluation_vocabularies: list[Vocabulary] = []
        self._training_lookup: Tensor | None = None
        self._loaded_step = 0

    # What a method gives -----------------------------------------------------------------------------------------

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Segment images with the classes of a vocabulary.

        Args:
            images: uint8 RGB ``(B, 3, H, W)``.
            text: Text embeddings of C classes.

        Returns:
            Dense scores or masks over the C classes.
        """
        raise NotImplementedError

    def released_network(self, images: Tensor, text: TextEmbeddings) -> object:
        """The network as the official code runs it and its multiply-adds are published: :meth:`forward` by default.

        For methods whose inference here leaves out work of the official code that no result depends on.

        Args:
            images: uint8 RGB ``(B, 3, H, W)``.
            text: Text embeddings of C classes.
        """
        return self(images, text)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses of a training batch; their sum is minimised.

        Args:
            batch: ``image`` uint8 ``(B, 3, H, W)`` and ``semantic`` int64 ``(B, H, W)`` in the indices of
                :attr:`training_vocabulary`.
        """
        raise NotImplementedError

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Optimiser groups; by default one group of everything that trains."""
        yield {"params": [p for p in self.parameters() if p.requires_grad], "name": "all"}

    # Text and labels of the training set --------------------------------------------------------------------------

    @property
    def seen_classes(self) -> list[int]:
        """Indices of the training vocabulary's classes whose labels may be used in training."""
        vocabulary = self._require_training_vocabulary()
        return list(range(len(vocabulary))) if vocabulary.seen is None else vocabulary.seen_indices

    def training_text(self) -> TextEmbeddings:
        """Text embeddings of the seen classes, in the order of :attr:`seen_classes`."""
        vocabulary = self._require_training_vocabulary()
        return self.text_classifier(vocabulary.subset(self.seen_classes))

    def training_targets(self, semantic: Tensor) -> Tensor:
        """Labels in the order of :attr:`seen_classes`; pixels of unseen classes become ignored ones.

        Args:
            semantic: int64 ``(B, H, W)`` in indices of the training vocabulary, or its ``ignore_index``.

        Returns:
            int64 ``(B, H, W)`` with ranks among the seen classes, ``ignore_index`` elsewhere.
        """
        vocabulary = self._require_training_vocabulary()
        if self._training_lookup is None or self._training_lookup.device != semantic.device:
            size = max(vocabulary.ignore_index, len(vocabulary)) + 1
            lookup = torch.full((size,), vocabulary.ignore_index, dtype=torch.int64)
            lookup[torch.tensor(self.seen_classes)] = torch.arange(len(self.seen_classes))
            self._training_lookup = lookup.to(semantic.device)
        return self._training_lookup[semantic]

    def mask_targets(self, batch: Batch, keep_empty: bool = False) -> MaskTargets:
        """Target masks of a training batch, labels in the order of :attr:`seen_classes`; none of unseen classes.

        One mask for each segment where the data has panoptic maps, else one for each class that an image holds.

        Args:
            batch: As for :meth:`losses`.
            keep_empty: Whether segments that the crop cut away stay as labels without a pixel.
        """
        if "segment_ids" not in batch:
            return MaskTargets.from_semantic(self.training_targets(batch["semantic"]), len(self.seen_classes))
        targets = MaskTargets.from_segments(batch["segment_ids"], batch["segment_classes"])
        labels = self.training_targets(targets.labels)
        keep = labels != self._require_training_vocabulary().ignore_index
        if not keep_empty:
            keep &= targets.masks.flatten(1).any(dim=1)
        return replace(targets, labels=labels).select(keep)

    def _require_training_vocabulary(self) -> Vocabulary:
        if self.training_vocabulary is None:
            raise InputError("The data has no training vocabulary; set `data.vocabulary` to the training set's.")
        return self.training_vocabulary

    # Lightning -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the training vocabulary from the data in ``fit``; evaluation gets it from the checkpoint."""
        if stage == "fit":
            self.training_vocabulary = self.trainer.datamodule.training_vocabulary  # type: ignore[attr-defined]
            self._training_lookup = None

    def configure_optimizers(self) -> Any:
        """Optimiser over :meth:`parameter_groups` and the schedule, stepped every optimiser step."""
        optimizer = self.optimizer(list(self.parameter_groups()))
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.schedule.build(optimizer, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Sum of the losses of a batch."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        batch_size = len(batch["id"])
        self.log("train/loss", total, prog_bar=True, batch_size=batch_size)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=batch_size)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=batch_size)
        return total

    def evaluation_text(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Text embeddings of the classes to choose from."""
        return self.text_classifier(vocabulary)

    def label_maps(self, batch: Batch, vocabulary: Vocabulary) -> list[Tensor]:
        """Label maps of an evaluation batch at the original size of each image.

        Args:
            batch: ``image``: list of uint8 ``(3, H, W)``; ``original_size``: list of ``(H0, W0)``.
            vocabulary: The classes to choose from.

        Returns:
            int64 ``(H0, W0)`` for each image.
        """
        return [found.labels for found in self.segmentations(batch, vocabulary)]

    def segmentations(
        self, batch: Batch, vocabulary: Vocabulary, things: Sequence[bool] | None = None
    ) -> list[Segmentation]:
        """Everything that one pass of the network says about an evaluation batch, at the original sizes.

        Args:
            batch: See :meth:`label_maps`; ``dataset`` may name the evaluation dataset.
            vocabulary: The classes to choose from.
            things: For each class whether it is countable; None asks for label maps only.
        """
        text = self.evaluation_text(vocabulary)
        inference = self.inference_for.get(batch.get("dataset", ""), self.inference)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, (image, original) in enumerate(zip(batch["image"], batch["original_size"], strict=True)):
            groups.setdefault((tuple(image.shape), tuple(original)), []).append(index)
        found: dict[int, Segmentation] = {}
        for (_, original), members in groups.items():
            images = torch.stack([batch["image"][index] for index in members])
            segmentations = segment(lambda crops: self(crops, text), images, original, inference, things)
            found.update(zip(members, segmentations, strict=True))
        return [found[index] for index in range(len(batch["image"]))]

    @property
    def trained_steps(self) -> int:
        """Optimiser steps behind the current weights, also when they come from a checkpoint."""
        return max(self.global_step, self._loaded_step)

    def _start_evaluation(self) -> None:
        """Make the metrics of each evaluation dataset, its seen classes decided by what this model trained on."""
        self.evaluation_vocabularies = []
        self._metrics, self._segment_metrics = nn.ModuleList(), []
        for vocabulary in self.trainer.datamodule.evaluation_vocabularies.values():  # type: ignore[attr-defined]
            # An explicit split of the evaluation set stands, as in the fully supervised rows of zero-shot tables.
            if vocabulary.seen is None and self.training_vocabulary is not None:
                vocabulary = vocabulary.with_seen_from(self.training_vocabulary)
            self.evaluation_vocabularies.append(vocabulary)
            metric = OpenVocabularyIoU(len(vocabulary), vocabulary.seen, vocabulary.ignore_index, self.absent_classes)
            self._metrics.append(metric.to(self.device))
            # On every process alike, also on one that gets no image: `compute` is called by all of them together.
            of_segments: list[Any] = []
            if self.predicts_masks and vocabulary.things is not None:
                of_segments.append(PanopticQuality(len(vocabulary), vocabulary.things, vocabulary.seen))
                of_segments.append(MaskAveragePrecision(len(vocabulary), vocabulary.seen))
            self._segment_metrics.append([of_segment.to(self.device) for of_segment in of_segments])

    def _evaluation_step(self, batch: Batch, dataloader_idx: int) -> list[Tensor]:
        vocabulary = self.evaluation_vocabularies[dataloader_idx]
        batch["dataset"] = list(self.trainer.datamodule.evaluation_vocabularies)[dataloader_idx]  # type: ignore[attr-defined]
        if self.predicts_masks and "segment_ids" in batch:
            found = self.segmentations(batch, vocabulary, vocabulary.things)
            self._count_segments(found, batch, dataloader_idx)
            labels = [segmentation.labels for segmentation in found]
        else:
            labels = self.label_maps(batch, vocabulary)
        metric: Any = self._metrics[dataloader_idx]
        for prediction, target in zip(labels, batch["semantic"], strict=True):
            metric.update(prediction, target)
        return labels

    def _count_segments(self, found: list[Segmentation], batch: Batch, dataloader_idx: int) -> None:
        quality, precision = self._segment_metrics[dataloader_idx]
        is_thing = torch.tensor(self.evaluation_vocabularies[dataloader_idx].things, device=self.device)
        truth = (batch["segment_ids"], batch["segment_classes"], batch["segment_crowd"])
        for segmentation, ids, classes, crowd in zip(found, *truth, strict=True):
            panoptic, instances = segmentation.panoptic, segmentation.instances
            if panoptic is None or instances is None:
                continue
            quality.update(panoptic.segment_ids, panoptic.classes, ids, classes, crowd)
            things = is_thing[classes].nonzero().flatten()
            masks = ids == things[:, None, None] + 1
            precision.update(instances.scores, instances.labels, instances.masks, classes[things], masks, crowd[things])

    def _finish_evaluation(self, stage: str) -> None:
        datasets = self.trainer.datamodule.evaluation_vocabularies  # type: ignore[attr-defined]
        self.evaluation_results = []
        for name, vocabulary, metric, of_segments in zip(
            datasets, self.evaluation_vocabularies, self._metrics, self._segment_metrics, strict=True
        ):
            result = metric.result(  # type: ignore[operator]
                run=Path(self.trainer.default_root_dir).name,
                method=type(self).__name__,
                stage=stage,
                dataset=name,
                step=self.trained_steps,
                vocabulary=vocabulary,
            )
            for segment_metric in of_segments:
                with warnings.catch_warnings():
                    # A dataset without panoptic maps, or a process without an image, has nothing to count.
                    warnings.filterwarnings("ignore", "The ``compute`` method of metric")
                    values = segment_metric.compute()
                if values["images"]:
                    numbers = {key: values[key].item() for key in segment_metric.scalars}
                    numbers = {key: None if math.isnan(number) else number for key, number in numbers.items()}
                    result = replace(result, metrics=result.metrics | numbers)
            dataset = getattr(self.trainer.datamodule, "evaluation", {}).get(name)  # type: ignore[attr-defined]
            quoted = (dataset and dataset.published) or {}
            result = replace(result, published={key: value / 100 for key, value in quoted.items()})
            self.evaluation_results.append(result)
            prefix = "val" if stage == "validate" else "test"
            # Every process logs the same value: the metric has summed its counts over all of them already.
            self.log_dict({f"{prefix}/{name}/{key}": v for key, v in result.metrics.items() if v is not None})

    def on_validation_start(self) -> None:
        """Prepare the metrics."""
        self._start_evaluation()

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> list[Tensor]:
        """Count a validation batch; returns its label maps for callbacks."""
        return self._evaluation_step(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of every dataset."""
        self._finish_evaluation("validate")

    def on_test_start(self) -> None:
        """Prepare the metrics."""
        self._start_evaluation()

    def test_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> list[Tensor]:
        """Count a test batch; returns its label maps for callbacks."""
        return self._evaluation_step(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Compute and log the metrics of every dataset."""
        self._finish_evaluation("test")

    def predict_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> list[Tensor]:
        """Label maps of a batch, with the vocabulary of the data."""
        vocabularies = list(self.trainer.datamodule.evaluation_vocabularies.values())  # type: ignore[attr-defined]
        return self.label_maps(batch, vocabularies[dataloader_idx])

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """State without the frozen CLIP, which its name and hash stand for."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if not args and not kwargs:
            for name in self.clip.frozen_names():
                state.pop(f"clip.model.{name}")
        return state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what the weights belong to: method, settings, frozen CLIP, training vocabulary. Plain types only."""
        vocabulary = self.training_vocabulary
        checkpoint["ovsl"] = {
            "method": f"{type(self).__module__}.{type(self).__qualname__}",
            "settings": self.settings,
            "clip": {"model": self.clip.name, "pretrained": self.clip.pretrained, "sha256": self.clip.sha256},
            "training_vocabulary": None if vocabulary is None else vocabulary.to_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method, another CLIP or another shape of this method.

        Raises:
            InputError: With what differs and what to do.
        """
        record = checkpoint.get("ovsl")
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        if record is None:
            raise InputError("The checkpoint was not written by ovsl; convert official weights with `ovsl convert`.")
        if record["method"] != own:
            raise InputError(
                f"The checkpoint holds {record['method'].rsplit('.', 1)[-1]}, but the configuration asks for "
                f"{own.rsplit('.', 1)[-1]}; give that method's configuration, or another checkpoint."
            )
        if record["clip"]["sha256"] != self.clip.sha256:
            raise InputError(
                f"The checkpoint was trained on CLIP {record['clip']['model']!r} ({record['clip']['pretrained']}), but "
                f"{self.clip.name!r} ({self.clip.pretrained}) with other weights is loaded; set model.clip to match."
            )
        expected, found = self.state_dict(), checkpoint["state_dict"]
        missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        wrong = [key for key in expected.keys() & found.keys() if expected[key].shape != found[key].shape]
        if missing or unexpected or wrong:
            named = ", ".join((missing + unexpected + sorted(wrong))[:3])
            raise InputError(
                f"The checkpoint does not fit this configuration of {own.rsplit('.', 1)[-1]}: {len(missing)} weights "
                f"missing, {len(unexpected)} unexpected, {len(wrong)} of another shape ({named} ...); "
                "use the config.yaml of the run that wrote it."
            )
        self._loaded_step = int(checkpoint["global_step"])
        if record["training_vocabulary"] is not None:
            self.training_vocabulary = Vocabulary.from_dict(record["training_vocabulary"])
