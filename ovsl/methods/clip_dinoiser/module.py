"""CLIP-DINOiser as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextEmbeddings, ViTTower
from ovsl.data.batches import TrainingBatch
from ovsl.errors import InputError
from ovsl.evaluation import Words
from ovsl.inference import DensePrediction, Inference, Prediction, SlidingWindow
from ovsl.layers import cosine_scores, pad_to_multiple
from ovsl.methods.background import check_background_first
from ovsl.methods.base import Losses, SegmentationModule
from ovsl.methods.clip_dinoiser.network import (
    CLIPDINOiserNetwork,
    CLIPDINOiserOutput,
    CLIPDINOiserSizes,
    CLIPFeatures,
    CLIPReader,
    drop_below,
    mark_background,
    pool,
)
from ovsl.methods.clip_dinoiser.teachers import DINOTeachers, Teachers
from ovsl.methods.schedules import MultiStepSchedule, Schedule
from ovsl.vocabulary import Vocabulary


class CLIPDINOiser(SegmentationModule):
    """MaskCLIP's features averaged over the cells that belong together, which two small heads learn from DINO.

    Wysoczanska, Simeoni, Ramamonjisoa, Bursuc, Trzcinski, Perez: *CLIP-DINOiser: Teaching CLIP a few DINO tricks for
    open-vocabulary semantic segmentation*, ECCV 2024, arXiv 2312.12359. Training reads images alone, no label; DINO
    and FOUND are built for it, and for inference only with `predict_with: teachers`.

    Args:
        clip: The frozen CLIP, a vision transformer with a class token.
        sizes: Sizes of the heads.
        teachers: Builds what the heads learn from.
        predict_with: Whose correlations and foreground inference uses. `teachers` needs no training (the paper's
            starting point).
        correlation_threshold: Smaller correlations count as 0 (gamma).
        mark_background: Give uncertain cells without foreground to class 0, which has to be `background`. On for
            PASCAL VOC with background and COCO-Object in the paper, off elsewhere.
        certainty: Probability from which on a class is kept where there is no foreground (delta).
        temperature: Factor of the cosine before the softmax, whatever the checkpoint's own scale.
        background_rate: Learning rate of the foreground head as a multiple of the optimiser's.
        templates: 80 templates, as published.
        inference: Windows of the paper, on images whose short side is 448.
        optimizer: AdamW with the rate of the correlation head.
        schedule: Drop of the rate after step 5000 of 6300.
        **kwargs: See `ovsl.methods.base.SegmentationModule`.

    Raises:
        InputError: A CLIP without a class token or with a convolutional tower, or a block that it does not have.
    """

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        sizes: CLIPDINOiserSizes = CLIPDINOiserSizes(),
        teachers: Callable[[], Teachers] = DINOTeachers,
        predict_with: Literal["heads", "teachers"] = "heads",
        correlation_threshold: float = 0.2,
        mark_background: bool = False,
        certainty: float = 0.99,
        temperature: float = 100.0,
        background_rate: float = 200.0,
        templates: str = "imagenet_80",
        inference: Inference = lazy_instance(SlidingWindow, crop_size=448, stride=224),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=5e-5, weight_decay=0.01),
        schedule: Schedule = lazy_instance(MultiStepSchedule, milestones=(5000,), factor=0.1),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip=clip, templates=templates, inference=inference, optimizer=optimizer, schedule=schedule, **kwargs
        )
        self.tower = self.clip.require_tower(ViTTower, "CLIP-DINOiser")
        num_blocks = self.tower.num_layers
        if sizes.feature_block is not None and not -num_blocks <= sizes.feature_block <= -2:
            raise InputError(
                f"feature_block is {sizes.feature_block}, but the heads can read blocks {-num_blocks} to -2 of "
                f"{self.clip.name!r}, or its output features (null)."
            )
        channels = self.clip.embedding_dimension if sizes.feature_block is None else self.tower.width
        self.network = CLIPDINOiserNetwork(channels, sizes)
        self.reader = CLIPReader(self.tower, sizes.feature_block)
        self.predict_with = predict_with
        self.correlation_threshold = correlation_threshold
        self.mark_background = mark_background
        self.certainty = certainty
        self.temperature = temperature
        self.background_rate = background_rate
        self.build_teachers = teachers
        # In a list, so that frozen teachers are no part of the module: neither of its checkpoints nor of its modes.
        self._teachers: list[Teachers] = []

    def teachers(self) -> Teachers:
        """Give what the heads learn from, built at the first call and on the device of the module."""
        if not self._teachers:
            self._teachers.append(self.build_teachers())
        return self._teachers[0].to(self.device)

    def setup(self, stage: str) -> None:
        """Build the teachers before a run that needs them starts."""
        if stage == "fit" or self.predict_with == "teachers":
            self.teachers()
        super().setup(stage)
        # Labels are never read, so that no class counts as seen.
        self.training_vocabulary = None

    def networks(self) -> Iterable[nn.Module]:
        """Give what reads the CLIP, and the heads."""
        return self.reader, self.network

    # Scores --------------------------------------------------------------------------------------------------------

    def features(self, padded: Tensor) -> CLIPFeatures:
        """Read what is needed of CLIP: images in whole patches -> features, see `CLIPFeatures`."""
        features: CLIPFeatures = self.reader(self.clip.normalize(padded))
        return features

    def probabilities(self, dense: Tensor, guide: CLIPDINOiserOutput, text: TextEmbeddings) -> Tensor:
        """Class probabilities of the cells.

        Args:
            dense: See `CLIPFeatures`.
            guide: Correlations and probability of foreground, of the heads or of the teachers.
            text: Text embeddings of C classes.

        Returns:
            `(B, C, h, w)`; they sum to 1 where the background was not marked.
        """
        pooled = pool(dense, guide.correlations, self.correlation_threshold)
        scores = text.per_class(cosine_scores(pooled, text.vectors))
        probabilities = (self.temperature * scores).softmax(dim=1)
        if not self.mark_background:
            return probabilities
        return mark_background(probabilities, guide.foreground, self.certainty)

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Class probabilities on the patch grid of the padded images, see `SegmentationModule.forward`."""
        padded = pad_to_multiple(images, self.tower.patch_size)
        dense, intermediate = self.features(padded)
        if self.predict_with == "teachers":
            guide = self.teachers()(padded, (dense.shape[2], dense.shape[3]))
        else:
            correlations, foreground_logits = self.network(intermediate)
            guide = CLIPDINOiserOutput(correlations, foreground_logits.sigmoid())
        # The grid of a padded image is stretched over the image without padding, as in the official code.
        return DensePrediction(self.probabilities(dense, guide, text))

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: TrainingBatch) -> Losses:
        """Binary cross entropy to what the teachers say of each pair of cells and of each cell (section 3.3)."""
        padded = pad_to_multiple(batch["image"], self.tower.patch_size)
        with torch.no_grad():
            intermediate = self.features(padded).intermediate
            taught = self.teachers()(padded, (intermediate.shape[2], intermediate.shape[3]))
        correlations, foreground_logits = self.network(intermediate)
        if taught.correlations.shape != correlations.shape:
            raise InputError(
                f"DINO compares {taught.correlations.shape[1]} cells of a training image, CLIP {correlations.shape[1]};"
                " choose a teacher with the patch size of CLIP."
            )
        related = drop_below(taught.correlations, self.correlation_threshold) > 0
        weighted = {
            # The cosine itself is the logit; below 0 it is as good as 0 and gets no gradient.
            "correlation": _cross_entropy(correlations.clamp(min=0), related),
            "foreground": _cross_entropy(foreground_logits, taught.foreground > 0.5),
        }
        return Losses(weighted)

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Give the two heads, each with its rate."""
        heads, rate = self.network, self.background_rate * base_rate
        yield {"params": list(heads.obj_proj.parameters()), "name": "correlation"}
        yield {"params": list(heads.bkg_decoder.parameters()), "lr": rate, "name": "foreground"}

    # Words ---------------------------------------------------------------------------------------------------------

    def words(self, vocabulary: Vocabulary) -> Words:
        """Take a vocabulary to choose from.

        Raises:
            InputError: The background is to be marked, but class 0 is something else.
        """
        if self.mark_background:
            check_background_first(vocabulary, "mark_background: false")
        return super().words(vocabulary)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
