"""FC-CLIP as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ovsl.clip import CLIPSettings, ConvTower, SynonymRule, TextEmbeddings, TowerStages
from ovsl.data import EvaluationTransform
from ovsl.data.batches import TrainingBatch
from ovsl.evaluation import Words
from ovsl.inference import Inference, MaskPrediction, WholeImage, resize
from ovsl.layers import pad_to_multiple
from ovsl.losses import Draw, HungarianMatcher, MaskSetCriterion, MaskTargets
from ovsl.methods.base import Losses, SegmentationModule
from ovsl.methods.fc_clip.ensemble import geometric_ensemble
from ovsl.methods.fc_clip.network import FCCLIPNetwork, FCCLIPSizes
from ovsl.methods.no_object import merge_names
from ovsl.methods.schedules import MultiStepSchedule, Schedule
from ovsl.metrics import AbsentClasses
from ovsl.vocabulary import Vocabulary

STRIDE = 32
"""Images are padded to multiples of this, the stride of the coarsest map."""


class FCCLIP(SegmentationModule):
    """Masks and two classifiers from one frozen convolutional CLIP.

    Yu, He, Deng, Shen, Chen: *Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional
    CLIP*, NeurIPS 2023, https://arxiv.org/abs/2308.02487. A Mask2Former decoder reads the multi-scale maps of the
    frozen image tower and predicts masks. Each mask is classified twice by cosine with the texts: by a trained head
    (in-vocabulary) and by the tower's own features pooled inside the mask (out-of-vocabulary); the two meet in a
    geometric mean that trusts the frozen CLIP more for unseen classes. Evaluates semantic, panoptic and instance
    segmentation. Images of any size; padding to a multiple of 32 is part of the model.

    Args:
        clip: A convolutional CLIP: `convnext_large_d_320` in the paper, any open_clip ConvNeXt or ResNet here.
        sizes: Sizes of pixel decoder and mask decoder.
        seen_exponent: Share of the frozen CLIP in the ensemble for classes seen in training (alpha).
        unseen_exponent: Its share for all others (beta).
        ensemble_on_valid_masks: Leave the frozen CLIP out for masks that are empty at stride 32; the published
            ResNet models need it, the published ConvNeXt model does not use it.
        class_weight: Weight of the classification loss and matching cost.
        mask_weight: Weight of the binary cross entropy of masks, in loss and matching.
        dice_weight: Weight of the dice loss and matching cost.
        no_object_weight: Class weight of unmatched queries.
        num_points: Points at which masks are compared.
        templates: Prompt template set.
        synonyms: How the names of one class are merged.
        absent_classes: Published figures average over the classes that occur in the ground truth.
        inference: The whole image, masks brought to the original size before they are combined with the classes, as
            published for sets with panoptic truth; the published semantic figures combine first.
        optimizer: Published optimiser; norms and embeddings do not decay.
        schedule: Published schedule; the run of 368,750 steps drops at 327,778 and 355,092.
        **kwargs: See `SegmentationModule`.
    """

    predicts_masks = True
    photo_transform = EvaluationTransform(800, 1333, enlarge=False, min_size=64)

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(model="toy_convnext"),
        sizes: FCCLIPSizes = FCCLIPSizes(),
        seen_exponent: float = 0.4,
        unseen_exponent: float = 0.8,
        ensemble_on_valid_masks: bool = False,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        templates: str = "vild_14",
        synonyms: SynonymRule = "max",
        absent_classes: AbsentClasses = "skip",
        inference: Inference = WholeImage(resize_masks_first=True),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.05),
        schedule: Schedule = lazy_instance(MultiStepSchedule, milestones=(327_778, 355_092)),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip=clip,
            templates=templates,
            synonyms=synonyms,
            absent_classes=absent_classes,
            inference=inference,
            optimizer=optimizer,
            schedule=schedule,
            **kwargs,
        )
        self.tower = self.clip.require_tower(ConvTower, "FCCLIP")
        self.backbone = TowerStages(self.tower)
        self.network = FCCLIPNetwork(self.tower.stage_channels, self.clip.embedding_dimension, sizes)
        self.seen_exponent = seen_exponent
        self.unseen_exponent = unseen_exponent
        self.ensemble_on_valid_masks = ensemble_on_valid_masks
        self.criterion = MaskSetCriterion(
            HungarianMatcher(class_weight, mask_weight, dice_weight, num_points),
            class_weight,
            mask_weight,
            dice_weight,
            no_object_weight,
            num_points,
        )

    def backbone_features(self, images: Tensor) -> list[Tensor]:
        """Read the frozen tower: normalised `(B, 3, H, W)` -> maps at stride 4, 8, 16 and 32, without gradient."""
        features: list[Tensor] = self.backbone(images)
        return features

    def forward(self, images: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """Masks with ensembled class probabilities; see `SegmentationModule.forward`.

        Classes whose `text.seen` is unknown count as seen.
        """
        padded = pad_to_multiple(self.clip.normalize(images), STRIDE)
        features = self.backbone_features(padded)
        output = self.network(features, text.vectors)
        class_logits = merge_names(output.class_logits, text)
        return self.ensemble(features[-1], class_logits, output.mask_logits, text, (padded.shape[2], padded.shape[3]))

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> object:
        """Run backbone and decoders, every prediction classified; inference here classifies the last one alone."""
        padded = pad_to_multiple(self.clip.normalize(images), STRIDE)
        return self.network(self.backbone_features(padded), text.vectors, auxiliary=True)

    def networks(self) -> Iterable[nn.Module]:
        """Give the frozen tower and the decoders."""
        return self.backbone, self.network

    def ensemble(
        self,
        coarsest: Tensor,
        class_logits: Tensor,
        mask_logits: Tensor,
        text: TextEmbeddings,
        padded_size: tuple[int, int],
    ) -> MaskPrediction:
        """Merge the two classifiers (paper, section 3.3).

        Args:
            coarsest: The tower's last map, `(B, channels, H/32, W/32)`.
            class_logits: Of the trained classifier, `(B, Q, C + 1)`.
            mask_logits: `(B, Q, H/4, W/4)`.
            text: Text embeddings of C classes.
            padded_size: `(H, W)`.
        """
        masks = pooling_masks(mask_logits, coarsest)
        frozen_logits = self.out_of_vocabulary_logits(coarsest, masks, text)
        seen = text.seen
        if seen is None:
            seen = torch.ones(text.num_classes, dtype=torch.bool, device=class_logits.device)
        probabilities = geometric_ensemble(
            class_logits,
            frozen_logits[..., :-1],
            seen,
            self.seen_exponent,
            self.unseen_exponent,
            masks.flatten(2).any(-1) if self.ensemble_on_valid_masks else None,
        )
        return MaskPrediction(mask_logits.float(), probabilities[..., :-1], probabilities[..., -1], padded_size)

    def out_of_vocabulary_logits(self, coarsest: Tensor, masks: Tensor, text: TextEmbeddings) -> Tensor:
        """Let the frozen CLIP classify regions of its last map: `(B, Q, C + 1)`, void last."""
        embeddings = self.tower.embed_masks(coarsest, masks)
        scale: Tensor = self.clip.model.logit_scale  # type: ignore[assignment]
        return merge_names(self.network.classify(embeddings, text.vectors, scale), text)

    def words(self, vocabulary: Vocabulary) -> Words:
        """See `SegmentationModule.words`.

        Scores are split by a split where there is one; the ensemble goes by names in common with the classes that were
        trained on, whatever the split (paper, section 3.3).
        """
        if self.training_vocabulary is None:
            return super().words(vocabulary)
        text = self.text_classifier(vocabulary.with_seen_from(self.training_vocabulary))
        return Words(self.with_seen(vocabulary), text)

    def losses(self, batch: TrainingBatch) -> Losses:
        """Compute classification, mask and dice losses of every prediction; unseen classes belong to no mask.

        As published, segments that the crop cut away stay as labels without a pixel.
        """
        targets = self.training_classes.masks(batch, keep_empty=True)
        targets = replace(targets, masks=pad_to_multiple(targets.masks, STRIDE))
        padded = pad_to_multiple(self.clip.normalize(batch["image"]), STRIDE)
        return Losses(self.set_losses(padded, self.training_classes.text(), targets))

    def set_losses(
        self, images: Tensor, text: TextEmbeddings, targets: MaskTargets, draw: Draw = torch.rand
    ) -> dict[str, Tensor]:
        """Compare normalised, padded images `(B, 3, H, W)` with masks of the same size."""
        last = self.network(self.backbone_features(images), text.vectors, auxiliary=True)
        predictions = [(merge_names(one.class_logits, text), one.mask_logits) for one in (*last.auxiliary, last)]
        return self.criterion(predictions, targets, draw)

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Leave norms and embeddings without weight decay, as released: all but the pixel decoder's level embedding."""
        exempt = {
            id(parameter)
            for module in self.network.modules()
            if isinstance(module, nn.LayerNorm | nn.GroupNorm)
            for parameter in module.parameters(recurse=False)
        }
        decoder = self.network.mask_decoder
        embeddings = (decoder.query_features, decoder.query_positions, decoder.level_embedding)
        exempt |= {id(parameter) for parameter in (*embeddings, self.network.void_embedding)}
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        yield {"params": [p for p in trainable if id(p) not in exempt], "name": "weights"}
        without_decay = [p for p in trainable if id(p) in exempt]
        yield {"params": without_decay, "weight_decay": 0.0, "name": "norms_and_embeddings"}


def pooling_masks(mask_logits: Tensor, coarsest: Tensor) -> Tensor:
    """Find the cells of the tower's last map that lie in each mask: bool `(B, Q, h, w)`."""
    return resize(mask_logits, (coarsest.shape[2], coarsest.shape[3])) > 0
