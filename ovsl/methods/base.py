"""What every method shares: contract, training step, optimiser, and thin hooks into evaluation and checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ovsl.clip import CLIPSettings, ImageTowerUse, SynonymRule, TextClassifier, TextEmbeddings, TextEncoder
from ovsl.data import EvaluationTransform
from ovsl.data.batches import TrainingBatch
from ovsl.data.order import sample_seed
from ovsl.errors import InputError
from ovsl.evaluation import Evaluation, Segmenter, Words
from ovsl.inference import Inference, Prediction, WholeImage
from ovsl.methods.evaluated import EvaluatedModule
from ovsl.methods.schedules import PolynomialSchedule, Schedule
from ovsl.methods.training_classes import TrainingClasses
from ovsl.metrics import AbsentClasses
from ovsl.results import EvaluationResult
from ovsl.runs.record import CheckpointRecord, CLIPIdentity, check_checkpoint, check_finite, load_weights, saved_state
from ovsl.vocabulary import Vocabulary

__all__ = ["CLIPSettings", "Losses", "SegmentationModule"]


@dataclass(frozen=True)
class Losses:
    """What a method computes from a training batch.

    Args:
        weighted: Scalars whose sum is minimised.
        figures: Scalars that are only logged.
    """

    weighted: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class SegmentationModule(EvaluatedModule):
    """A method of open-vocabulary semantic segmentation on a CLIP.

    A subclass builds its network in `__init__` and gives `forward` and, if it trains, `losses`.

    Args:
        clip: The CLIP that gives image features and text embeddings.
        templates: Prompt template set, see `ovsl.vocabulary.load_templates`.
        synonyms: How the names of one class are merged: `first`, `mean` or `max`. None takes `first` where a dataset is
            scored, as the published protocols do, and `max` for words of the user's own (`use_own_words`).
        inference: `WholeImage`, `SlidingWindow` or another of `ovsl.inference`.
        inference_for: Another inference for some evaluation datasets, by their names.
        absent_classes: How mIoU treats classes that the ground truth of a dataset lacks, see
            `ovsl.metrics.OpenVocabularyIoU`.
        optimizer: Called with the parameter groups.
        schedule: Learning-rate schedule over the run.
        train_clip: Substrings of CLIP parameter names that train with the method; all others are frozen.
        initial_checkpoint: Checkpoint of this method whose weights a new run starts from; optimiser and schedule
            start afresh.
        mixed_precision_evaluation: Whether validation, test and prediction run in the mixed precision that the trainer
            trains in. By default they run in float32, as the official codes do.
    """

    trainable: ClassVar[bool] = True
    """Whether the method has anything to train; False for training-free ones."""

    predicts_masks: bool = False
    """Whether `forward` returns a `MaskPrediction`, which panoptic quality needs."""

    needs_regions: bool = False
    """Whether `forward` takes region maps, integers `(B, H, W)`, as its third argument."""

    photo_transform: ClassVar[EvaluationTransform] = EvaluationTransform(512, 2048, enlarge=False, min_size=64)
    """Size at which photos go through the network unless the user says another: that of the published tests, where it
    does not enlarge them. Photos that are tiny or all but a line are brought to something that every network takes."""

    image_tower: ClassVar[ImageTowerUse] = "frozen"
    """What the method does with the image tower of the CLIP, see `ovsl.clip.CLIPSettings.build`."""

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        templates: str = "imagenet_80",
        synonyms: SynonymRule | None = None,
        inference: Inference = WholeImage(),
        inference_for: dict[str, Inference] | None = None,
        absent_classes: AbsentClasses = "skip",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = PolynomialSchedule(),
        train_clip: tuple[str, ...] = (),
        initial_checkpoint: str | None = None,
        mixed_precision_evaluation: bool = False,
    ) -> None:
        super().__init__()
        self.clip = clip.build(self.image_tower)
        self.clip.freeze(train_clip)
        self.templates = templates
        self.synonyms: SynonymRule = synonyms or "first"
        self._synonyms_given = synonyms is not None
        self.inference = inference
        self.inference_for = inference_for or {}
        self.absent_classes = absent_classes
        self.optimizer = optimizer
        self.schedule = schedule
        self.initial_checkpoint = initial_checkpoint
        self.mixed_precision_evaluation = mixed_precision_evaluation
        # Checkpoints leave the frozen CLIP out; `on_load_checkpoint` is stricter than Lightning's own check.
        self.strict_loading = False
        self.training_vocabulary: Vocabulary | None = None
        self.settings: dict[str, Any] | None = None
        self.evaluation = Evaluation([])
        self.evaluation_results: list[EvaluationResult] = []
        self._training_classes: TrainingClasses | None = None
        self._loaded_step = 0

    # What a method gives -----------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Segment images with the classes of a vocabulary.

        Args:
            images: uint8 RGB `(B, 3, H, W)`.
            text: Text embeddings of C classes.

        Returns:
            Dense scores or masks over the C classes.
        """

    def losses(self, batch: TrainingBatch) -> Losses:
        """Compare a training batch with what the network says of it; what `training_classes` gives may be used.

        Args:
            batch: Labels in the indices of the training vocabulary.
        """
        raise NotImplementedError(f"{type(self).__name__} does not train.")

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Give the optimiser's groups; by default one of everything that trains.

        Args:
            base_rate: Learning rate of groups that do not name their own `lr`.
        """
        yield {"params": [p for p in self.parameters() if p.requires_grad], "name": "all"}

    def text_encoder(self) -> TextEncoder:
        """Make what embeds vocabularies; called once, when the first one is embedded."""
        return TextClassifier(self.clip, self.templates, self.synonyms)

    def words(self, vocabulary: Vocabulary) -> Words:
        """Take a vocabulary to choose from in evaluation: the one place where seen classes are decided.

        A class is seen by an explicit split, or else by sharing a name with a class that the method trained on.
        """
        vocabulary = self.with_seen(vocabulary)
        return Words(vocabulary, self.text_classifier(vocabulary))

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> object:
        """Run the network as the official code does, whose multiply-adds are published: `forward` by default.

        For methods whose inference here leaves out work of the official code that no result depends on.

        Args:
            images: uint8 RGB `(B, 3, H, W)`.
            text: Text embeddings of C classes.
            *regions: Region maps `(B, H, W)`, where the method needs them.
        """
        return self(images, text, *regions)

    @property
    def method_name(self) -> str:
        """What tables and pictures call the method: its class, unless one class stands for several."""
        return type(self).__name__

    @property
    def title(self) -> str:
        """What tables and pictures call the method: a CLIP that knows no word shows in every one of them."""
        name = self.method_name
        return name if self.clip.pretrained else f"{name} (random CLIP)"

    def use_own_words(self) -> None:
        """From now on, words are a user's own, and all names of a class count unless the option `synonyms` is set."""
        if not self._synonyms_given:
            self.synonyms = "max"
            self.__dict__.pop("text_classifier", None)

    # What a method may use ---------------------------------------------------------------------------------------

    @cached_property
    def text_classifier(self) -> TextEncoder:
        """Embeds vocabularies; see `text_encoder`."""
        return self.text_encoder()

    @property
    def training_classes(self) -> TrainingClasses:
        """The classes that are trained on.

        Raises:
            InputError: The data has no training vocabulary.
        """
        if self.training_vocabulary is None:
            raise InputError("The data has no training vocabulary; set `data.vocabulary` to the training set's.")
        if self._training_classes is None or self._training_classes.vocabulary is not self.training_vocabulary:
            self._training_classes = TrainingClasses(self.training_vocabulary, self.text_classifier)
        return self._training_classes

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

    # Training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the training vocabulary from the data in `fit`; evaluation gets it from the checkpoint."""
        if stage == "predict":
            self.use_own_words()
            self.data.use_photo_transform(self.photo_transform)
        if stage != "fit":
            return
        if self.initial_checkpoint is not None:
            load_weights(self, Path(self.initial_checkpoint))
            self._loaded_step = 0  # the new run counts its own steps
        self.training_vocabulary = self.data.training_vocabulary

    def configure_optimizers(self) -> Any:
        """Make the optimiser over `parameter_groups`, and the schedule, stepped every optimiser step."""
        base_rate = self.optimizer([torch.zeros(1)]).defaults["lr"]
        optimizer = self.optimizer(list(self.parameter_groups(float(base_rate))))
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: TrainingBatch, batch_index: int) -> None:
        """Seed dropout and random points by the position in the data, so that a resumed run draws what it would have.

        Validations, which may draw too, and what came before leave no trace in it.
        """
        torch.manual_seed(sample_seed(self.data.seed, self.data.position, self.global_rank))

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        """Sum the losses of a batch."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.weighted.values())).sum()
        batch_size = len(batch["id"])
        self.log("train/loss", total, prog_bar=True, batch_size=batch_size)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=batch_size)
        logged = {f"train/{name}": value for name, value in {**losses.weighted, **losses.figures}.items()}
        self.log_dict(logged, batch_size=batch_size)
        return total

    @property
    def trained_steps(self) -> int:
        """Optimiser steps behind the current weights, also when they come from a checkpoint."""
        return max(self.global_step, self._loaded_step)

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def frozen_names(self) -> set[str]:
        """Name the weights of the frozen CLIP, which checkpoints leave out: its name and hash stand for them."""
        return {f"clip.model.{name}" for name in self.clip.frozen_names()}

    def check_weights(self) -> None:
        """Refuse weights that are not finite.

        Raises:
            NotFiniteError: Some of what trains is NaN or infinite.
        """
        check_finite(saved_state(self, self.state_dict()))

    def record(self) -> CheckpointRecord:
        """Say what the weights belong to."""
        clip = CLIPIdentity(self.clip.name, self.clip.pretrained, self.clip.sha256)
        method = f"{type(self).__module__}.{type(self).__qualname__}"
        return CheckpointRecord(method, self.settings, clip, self.training_vocabulary, self.trained_steps)

    def take_record(self, record: CheckpointRecord) -> None:
        """Go on from loaded weights: what they trained on, and for how long."""
        self._loaded_step = record.step
        if record.training_vocabulary is not None:
            self.training_vocabulary = record.training_vocabulary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out, and record what the weights belong to."""
        checkpoint["state_dict"] = saved_state(self, checkpoint["state_dict"])
        checkpoint["ovsl"] = self.record().to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong to this module (see `CheckpointRecord.check`) or to its data."""
        record = check_checkpoint(self, checkpoint)
        ours, theirs = self.training_vocabulary, record.training_vocabulary
        if ours is not None and theirs is not None and (ours.classes, ours.seen) != (theirs.classes, theirs.seen):
            raise InputError(
                f"The checkpoint was trained on {len(theirs)} classes of {theirs.name!r}, but the data has other ones, "
                f"or another split ({len(ours)} classes of {ours.name!r}); give back the vocabulary of the run, or "
                "start a new one from these weights (--model.initial_checkpoint)."
            )
        self.take_record(record)
