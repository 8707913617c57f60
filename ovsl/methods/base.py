"""What every method shares: contract, training step, optimiser, and thin hooks into evaluation and checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ovsl.clip import CLIPSettings, ImageTowerUse, SynonymRule, TextClassifier, TextEmbeddings, TextEncoder
from ovsl.data.batches import TrainingBatch
from ovsl.data.order import sample_seed
from ovsl.errors import InputError
from ovsl.inference import Inference, Prediction, WholeImage
from ovsl.methods.evaluated import EvaluatedModule
from ovsl.methods.schedules import PolynomialSchedule, Schedule
from ovsl.methods.training_classes import TrainingClasses
from ovsl.metrics import AbsentClasses
from ovsl.runs.record import load_weights
from ovsl.vocabulary import ClassNames

__all__ = ["CLIPSettings", "Losses", "SegmentationModule"]


@dataclass(frozen=True)
class Losses:
    """What a method computes from a training batch.

    Args:
        weighted: Scalars whose sum is minimised.
        figures: Scalars that are only logged, computed in the steps that are.
    """

    weighted: Mapping[str, Tensor]
    figures: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)


class SegmentationModule(EvaluatedModule):
    """A method of open-vocabulary semantic segmentation on a CLIP.

    A subclass builds its network in `__init__` and gives `forward` and, if it trains, `losses`.

    Args:
        clip: The CLIP that gives image features and text embeddings.
        templates: Prompt template set, see `ovsl.vocabulary.load_templates`.
        synonyms: How the names of one class are merged: `first`, `mean` or `max`. None takes `first` where a dataset is
            scored, as the published protocols do, and `max` for words of the user's own (`use_own_words`).
        class_names: Names that the text encoder sees in place of those of a vocabulary: a shipped list of a publication
            (`zegclip`, `san`, `denseclip` ...), or the names, see `ovsl.vocabulary.ClassNames`.
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

    image_tower: ClassVar[ImageTowerUse] = "frozen"
    """What the method does with the image tower of the CLIP, see `ovsl.clip.CLIPSettings.build`."""

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        templates: str = "imagenet_80",
        synonyms: SynonymRule | None = None,
        class_names: dict[str, Any] | str | None = None,
        inference: Inference = WholeImage(),
        inference_for: dict[str, Inference] | None = None,
        absent_classes: AbsentClasses = "skip",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = PolynomialSchedule(),
        train_clip: tuple[str, ...] = (),
        initial_checkpoint: str | None = None,
        mixed_precision_evaluation: bool = False,
    ) -> None:
        built = clip.build(self.image_tower)
        built.freeze(train_clip)
        super().__init__(built, inference, inference_for or {}, absent_classes, mixed_precision_evaluation)
        self.templates = templates
        self.synonyms: SynonymRule = synonyms or "first"
        self._synonyms_given = synonyms is not None
        self.class_names = ClassNames(class_names)
        self.optimizer = optimizer
        self.schedule = schedule
        self.initial_checkpoint = initial_checkpoint
        self._training_classes: TrainingClasses | None = None

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
        return TextClassifier(self.clip, self.templates, self.synonyms, self.class_names)

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> object:
        """Run the network as the official code does, whose multiply-adds are published: `forward` by default.

        For methods whose inference here leaves out work of the official code that no result depends on.

        Args:
            images: uint8 RGB `(B, 3, H, W)`.
            text: Text embeddings of C classes.
            *regions: Region maps `(B, H, W)`, where the method needs them.
        """
        return self(images, text, *regions)

    def networks(self) -> Iterable[nn.Module]:
        """Give the modules that `ovsl.callbacks.Execution` compiles; the method's `network` by default."""
        network = getattr(self, "network", None)
        return () if network is None else (network,)

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

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimiser over `parameter_groups`."""
        # What the optimiser was configured with is known to one that is made.
        base_rate = self.optimizer([torch.zeros(1)]).defaults["lr"]
        return self.optimizer(list(self.parameter_groups(float(base_rate))))

    def configure_optimizers(self) -> Any:
        """Make the optimiser, and the schedule, stepped every optimiser step."""
        optimizer = self.build_optimizer()
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: TrainingBatch, batch_index: int) -> None:
        """Seed dropout and random points by the position in the data, so that a resumed run draws what it would have.

        Validations, which may draw too, and what came before leave no trace in it.
        """
        torch.manual_seed(sample_seed(self.data.seed, self.data.position, self.global_rank))

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        """Sum the losses of a batch; log them every `trainer.log_every_n_steps` steps."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.weighted.values())).sum()
        trainer: Any = self.trainer
        if batch_index == 0 or (self.global_step + 1) % trainer.log_every_n_steps == 0 or trainer.should_stop:
            self._log_losses(total, losses, len(batch["id"]))
        return total

    def _log_losses(self, total: Tensor, losses: Losses, batch_size: int) -> None:
        with torch.no_grad():
            figures = {name: compute() for name, compute in losses.figures.items()}
        figures = {"loss": total, **losses.weighted, **figures}
        # One transfer for all of them. From here on they are numbers of the host: the progress bar reads what was
        # logged last in every step.
        values = torch.stack([figure.detach().float() for figure in figures.values()]).cpu().unbind()
        rate = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        logged = {f"train/{name}": value for name, value in zip(figures, values, strict=True)}
        self.log("train/loss", logged.pop("train/loss"), prog_bar=True, batch_size=batch_size)
        self.log_dict(logged | {"train/learning_rate": rate}, batch_size=batch_size)
