"""ZegCLIP as a LightningModule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings, ViTTower
from ovsl.data.batches import TrainingBatch
from ovsl.errors import InputError
from ovsl.evaluation import Words
from ovsl.inference import DensePrediction, Inference, Prediction, SlidingWindow, resize
from ovsl.layers import ImageNormalization
from ovsl.losses import count_masks, dice_loss, pixel_accuracy, pixel_cross_entropy, sigmoid_focal_loss
from ovsl.methods.base import Losses, SegmentationModule
from ovsl.methods.schedules import PolynomialSchedule, Schedule
from ovsl.methods.zegclip.network import AttentionToMaskLayer, ZegCLIPNetwork, ZegCLIPSizes
from ovsl.vocabulary import Vocabulary


class ZegCLIP(SegmentationModule):
    """One-stage zero-shot segmentation with deep prompts, independent class masks and relationship descriptors.

    Zhou, Lei, Zhang, Liu, Liu: *ZegCLIP: Towards Adapting CLIP for Zero-shot Semantic Segmentation*, CVPR 2023,
    https://arxiv.org/abs/2212.03588. A frozen CLIP vision transformer with learned prompts in every block gives patch
    and image embeddings; text embeddings, multiplied with the image embedding, query a small decoder whose attention
    logits are the class masks; sigmoid focal and dice losses train them independently of one another, so that an
    unseen class added at test time competes with nothing it was pushed below.

    The three settings of the paper: **inductive** is the default, with a zero-shot split of the training vocabulary;
    **transductive** sets `self_training_start` (and starts within one run, or from `initial_checkpoint`); **fully
    supervised** is a training vocabulary without a split. The rows of its ablation: `sizes.num_prompts: 0`,
    `loss: exclusive` and `relationship_descriptor: false` together are the baseline on a frozen CLIP, and with
    `train_clip: [visual.]` the fine-tuned one.

    Args:
        clip: The CLIP; its image tower has to be a vision transformer with a class token.
        sizes: Sizes of prompts and decoder.
        relationship_descriptor: Query with `[text * image, text]` and not with the text alone.
        loss: `non_exclusive` (focal and dice on sigmoids) or `exclusive` (softmax and cross entropy, which
            ignores pixels without a label).
        focal_weight: Weight of the focal loss.
        dice_weight: Weight of the dice loss.
        seen_offset: Subtracted from the scores of seen classes at test time, except with self-training.
        self_training_start: Step from which pixels of unseen classes are labelled with the best unseen class of the
            same forward pass; 0 with an inductive `initial_checkpoint`. None for the other two settings.
        dropout: Dropout of prompts and decoder.
        normalization: `imagenet` mean and standard deviation, as published, or those of the `clip`.
        repeat_class_embedding: Add the class embedding of the tower twice, as the official code does.
        position_mode: Interpolation of position embeddings.
        checkpoint_activations: Keep only the inputs of CLIP's blocks in training and compute the rest twice.
        round_text: Round text embeddings to half precision, in which the official ones are stored.
        templates: `single` for VOC, `zegclip_15` for COCO-Stuff and PASCAL Context.
        inference: Windows of the published tables, on images whose short side is 512.
        optimizer: One group: everything that trains has the same rate and decay in the published recipe.
        schedule: Published schedule.
        **kwargs: See `SegmentationModule`.
    """

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        sizes: ZegCLIPSizes = ZegCLIPSizes(),
        relationship_descriptor: bool = True,
        loss: Literal["non_exclusive", "exclusive"] = "non_exclusive",
        focal_weight: float = 100.0,
        dice_weight: float = 1.0,
        seen_offset: float = 0.1,
        self_training_start: int | None = None,
        dropout: float = 0.1,
        normalization: Literal["imagenet", "clip"] = "imagenet",
        repeat_class_embedding: bool = True,
        position_mode: Literal["bilinear", "bicubic"] = "bilinear",
        checkpoint_activations: bool = False,
        round_text: bool = True,
        templates: str = "single",
        inference: Inference = SlidingWindow(crop_size=512, stride=426),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=2e-4, weight_decay=0.01),
        schedule: Schedule = PolynomialSchedule(power=0.9, minimum=1e-6, warmup_steps=1500),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip=clip, templates=templates, inference=inference, optimizer=optimizer, schedule=schedule, **kwargs
        )
        self.tower = self.clip.require_tower(ViTTower, "ZegCLIP")
        self.network = ZegCLIPNetwork(
            self.tower,
            self.clip.embedding_dimension,
            sizes,
            dropout,
            relationship_descriptor,
            repeat_class_embedding,
            position_mode,
            checkpoint_activations,
        )
        imagenet = ImageNormalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.normalize = imagenet if normalization == "imagenet" else self.clip.normalize
        self.loss = loss
        self.focal_weight = focal_weight
        self.dice_weight = dice_weight
        self.seen_offset = seen_offset
        self.self_training_start = self_training_start
        self.round_text = round_text
        # Data-parallel training waits for the gradient of every parameter that it is not told to leave alone.
        self._ddp_params_and_buffers_to_ignore = self._without_gradient()

    # Scores --------------------------------------------------------------------------------------------------------

    def mask_logits(self, images: Tensor, text: TextEmbeddings) -> Tensor:
        """Mask logits on the patch grid: images `(B, 3, H, W)` -> `(B, C, h, w)`."""
        vectors = text.vectors.half().float() if self.round_text else text.vectors
        return text.per_class(self.network(self.normalize(images), vectors).mask_logits.float())

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Mask probabilities, those of seen classes lowered; see `SegmentationModule.forward`."""
        logits = self.mask_logits(images, text)
        offset = None
        if text.seen is not None and self.self_training_start is None:
            offset = self.seen_offset * text.seen.to(logits.dtype)
        if self.loss == "exclusive":
            return DensePrediction(logits.softmax(dim=1), class_offset=offset)
        return DensePrediction(logits, "sigmoid", offset)

    def words(self, vocabulary: Vocabulary) -> Words:
        """See `SegmentationModule.words`; to a model that trained on all of its classes, all are seen."""
        words = super().words(vocabulary)
        trained = self.training_vocabulary
        if words.text.seen is None or trained is None or trained.unseen_indices:
            return words
        # Whatever a split reports: the scores are split by it, but no class is lowered below another.
        return replace(words, text=replace(words.text, seen=torch.ones_like(words.text.seen)))

    # Training ------------------------------------------------------------------------------------------------------

    @property
    def self_training(self) -> bool:
        """Whether pixels of unseen classes are trained on with pseudo-labels at this step."""
        return self.self_training_start is not None and self.global_step >= self.self_training_start

    def losses(self, batch: TrainingBatch) -> Losses:
        """Compute focal and dice loss, or cross entropy, of the fed classes; see `SegmentationModule.losses`."""
        logits, labels = self.training_pair(batch)
        ignore_index = self.training_classes.ignore_index
        figures = {"pixel_accuracy": lambda: pixel_accuracy(logits, labels, ignore_index)}
        if self.loss == "exclusive":
            return Losses({"cross_entropy": pixel_cross_entropy(logits, labels, ignore_index)}, figures)
        num_masks = count_masks(labels, logits.shape[1])
        weighted = {
            "focal": self.focal_weight * sigmoid_focal_loss(logits, labels, num_masks),
            "dice": self.dice_weight * dice_loss(logits, labels, num_masks),
        }
        return Losses(weighted, figures)

    def training_pair(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Give what the losses compare.

        Returns:
            Logits `(B, C, H, W)` at the size of the labels, of the seen classes or, in self-training, of all;
            labels int64 `(B, H, W)` in the same order, pseudo-labels written in.
        """
        training = self.training_classes
        vocabulary, semantic, ignore_index = training.vocabulary, batch["semantic"], training.ignore_index
        targets = training.targets(semantic)
        text = self.text_classifier(vocabulary) if self.self_training else training.text()
        logits = resize(self.mask_logits(batch["image"], text), (semantic.shape[1], semantic.shape[2]))
        if not self.self_training:
            return logits, targets
        if not vocabulary.unseen_indices:
            raise InputError(
                f"Self-training needs unseen classes, but the training vocabulary {vocabulary.name!r} has none; choose "
                "a zero-shot split, or leave `self_training_start` out."
            )
        hidden = (targets == ignore_index) & (semantic != ignore_index)
        pseudo = pseudo_labels(logits.detach(), torch.tensor(vocabulary.unseen_indices, device=logits.device))
        return logits, torch.where(hidden, pseudo, semantic)

    def setup(self, stage: str) -> None:
        """Refuse self-training on data that hides unseen classes."""
        if stage == "fit" and self.self_training_start is not None and self.data.ignore_unseen:
            raise InputError(
                "Self-training has to know where unseen classes are; set `data.ignore_unseen: false` "
                "(their labels are used for nothing else)."
            )
        super().setup(stage)

    def _without_gradient(self) -> list[str]:
        """Names of trainable parameters that no output depends on: see `AttentionToMaskLayer`."""
        count = len(self.network.decoder.layers)
        unused = [(i, part) for i in range(count) for part in AttentionToMaskLayer.unused]
        unused += [(count - 1, part) for part in AttentionToMaskLayer.unused_in_last]
        prefixes = tuple(f"network.decoder.layers.{i}.{part}." for i, part in unused)
        return [name for name, _ in self.named_parameters() if name.startswith(prefixes)]


def pseudo_labels(logits: Tensor, unseen: Tensor) -> Tensor:
    """Find the best unseen class of every pixel.

    Args:
        logits: `(B, C, H, W)`.
        unseen: Indices of the unseen classes, ascending, int64 `(U,)`.

    Returns:
        int64 `(B, H, W)`.
    """
    # Of the probabilities, not of the logits, so that classes that both saturate tie as they do officially.
    return unseen[logits[:, unseen].sigmoid().argmax(dim=1)]
