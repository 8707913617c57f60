"""DenseCLIP as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ovsl.clip import CLIPSettings, ResNetTower, TextEmbeddings, TextEncoder, ViTTower
from ovsl.data.batches import TrainingBatch
from ovsl.errors import InputError
from ovsl.inference import DensePrediction, Inference, Prediction, SlidingWindow, resize
from ovsl.layers import Backbone, ImageNormalization
from ovsl.losses import Average, pixel_accuracy, pixel_cross_entropy
from ovsl.methods.base import Losses
from ovsl.methods.closed_set import ClosedSetModule
from ovsl.methods.denseclip.encoders import ViTOptions, build_encoder, build_language_encoder
from ovsl.methods.denseclip.network import DenseCLIPNetwork, DenseCLIPOutput, DenseCLIPSizes, Matched, SemanticFPN
from ovsl.methods.denseclip.text import ContextTextClassifier, LearnedContexts
from ovsl.methods.schedules import PolynomialSchedule, Schedule


class DenseCLIP(ClosedSetModule):
    """Semantic FPN guided by pixel-text score maps, with texts that the image adapts.

    Rao, Zhao, Chen, Tang, Zhu, Huang, Zhou, Lu: *DenseCLIP: Language-Guided Dense Prediction with Context-Aware
    Prompting*, CVPR 2022, https://arxiv.org/abs/2112.01518. The image tower of CLIP trains with a tenth of the learning
    rate; the text tower is frozen and read through eight learned context tokens. The cosines of cells and texts are
    appended to one level of the pyramid and trained by an auxiliary loss.

    The method is fully supervised: its head knows `num_classes` classes. With `open_vocabulary` predictions are
    the softmax of the score map instead, which exists for any list of words (an addition of ours).

    Args:
        clip: The CLIP; its image tower, where no `backbone` is given, becomes part of the network and trains.
        num_classes: Classes of the head: those of the training vocabulary that may be used in training.
        backbone: timm backbone in place of the image tower; its attention pool starts from random weights.
        backbone_pretrained: Load timm's weights of the `backbone`.
        backbone_options: More arguments of `timm.create_model`.
        language_guidance: False for the plain Semantic FPN on the same encoder, the paper's baseline.
        open_vocabulary: Predict with the score map.
        sizes: Sizes of what is added to the image tower.
        name_length: Tokens of a class name, start and end included.
        gamma: Initial weight of what the image adds to the texts.
        temperature: Divisor of the cosines in the auxiliary loss.
        score_weight: Weight of the auxiliary loss.
        head_dropout: Dropout of the head.
        context_dropout: Dropout of the context decoder.
        drop_path: Stochastic depth of a vision transformer.
        out_indices: Blocks of a vision transformer whose outputs make the pyramid; None for those of 12 blocks.
        repeat_class_embedding: Add a vision transformer's class embedding twice, as the official code does.
        average: What losses are divided by; the published runs count ignored pixels too.
        backbone_rate: Factor of the learning rate of the image encoder.
        inference: Windows of the published single-scale rows, on images whose short side is 512. Multi-scale rows:
            `MultiScale`.
        image_tower_start: CLIP whose image tower gives the starting weights that fit by name and shape; all others stay
            as `clip` has them. The released RN101 baseline starts so from RN50, its other blocks random.
        optimizer: Published optimiser.
        schedule: Published schedule.
        **kwargs: See `SegmentationModule`; `templates` and `synonyms` are not used.
    """

    image_tower = "trained"

    def __init__(
        self,
        num_classes: int,
        clip: CLIPSettings = CLIPSettings(),
        backbone: str | None = None,
        backbone_pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        language_guidance: bool = True,
        open_vocabulary: bool = False,
        sizes: DenseCLIPSizes = DenseCLIPSizes(),
        name_length: int = 5,
        gamma: float = 1e-4,
        temperature: float = 0.07,
        score_weight: float = 0.4,
        head_dropout: float = 0.1,
        context_dropout: float = 0.1,
        drop_path: float = 0.1,
        out_indices: Sequence[int] | None = None,
        repeat_class_embedding: bool = True,
        average: Average = "all",
        backbone_rate: float = 0.1,
        image_tower_start: CLIPSettings | None = None,
        inference: Inference = SlidingWindow(crop_size=512, stride=341),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4),
        schedule: Schedule = PolynomialSchedule(power=0.9, minimum=1e-6, warmup_steps=1500),
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, inference=inference, optimizer=optimizer, schedule=schedule, **kwargs)
        if open_vocabulary and not language_guidance:
            raise InputError("open_vocabulary predicts with the score map, which needs language_guidance: true.")
        tower = self.clip.take_image_tower()
        if image_tower_start is not None and tower is not None:
            take_weights(tower.visual, image_tower_start)
        source = tower if backbone is None else Backbone(backbone, backbone_pretrained, backbone_options)
        if not isinstance(source, Backbone | ResNetTower | ViTTower):
            raise InputError(
                f"DenseCLIP reads CLIP's ResNets and vision transformers, and {self.clip.name!r} is neither; choose "
                "another, or give a timm `backbone`."
            )
        self.normalize = self.clip.normalize
        if isinstance(source, Backbone):
            self.normalize = ImageNormalization(source.mean, source.std)
        vit = ViTOptions(out_indices, drop_path, repeat_class_embedding)
        self.network: DenseCLIPNetwork | SemanticFPN
        self.contexts: LearnedContexts | None = None
        if language_guidance:
            dimension = self.clip.embedding_dimension
            encoder = build_language_encoder(source, dimension, sizes.image_size, vit)
            self.network = DenseCLIPNetwork(
                encoder, num_classes, dimension, sizes, head_dropout, context_dropout, gamma
            )
            self.contexts = LearnedContexts(sizes.num_contexts, self.clip.text.token_embedding.weight.shape[1])
        else:
            plain = build_encoder(source, sizes.image_size, vit)
            self.network = SemanticFPN(plain, num_classes, sizes, head_dropout)
        if language_guidance and sizes.num_contexts + name_length > self.clip.context_length:
            raise InputError(
                f"{sizes.num_contexts} contexts and names of {name_length} tokens need more than the "
                f"{self.clip.context_length} positions of the text tower of {self.clip.name!r}; lower "
                "sizes.num_contexts or name_length."
            )
        self.name_length = name_length
        self.open_vocabulary = open_vocabulary
        self.closed_set = not open_vocabulary
        self.temperature = temperature
        self.score_weight = score_weight
        self.average: Average = average
        self.backbone_rate = backbone_rate

    def use_own_words(self) -> None:
        """Learned contexts stand around one name of a class, the first."""

    def text_encoder(self) -> TextEncoder:
        """See `SegmentationModule.text_encoder`; with learned contexts in place of templates."""
        if self.contexts is None:
            return super().text_encoder()
        return ContextTextClassifier(self.clip, self.contexts, self.name_length, self.class_names)

    # Prediction ----------------------------------------------------------------------------------------------------

    def run_network(self, images: Tensor, text: TextEmbeddings) -> DenseCLIPOutput:
        """Run the network with its head: images uint8 `(B, 3, H, W)`, texts of the head's classes."""
        output: DenseCLIPOutput = self.network(self.normalize(images), text.vectors)
        return output

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Give logits of the head, or of the score map; see `SegmentationModule.forward`."""
        if self.open_vocabulary and isinstance(self.network, DenseCLIPNetwork):
            matched: Matched = self.network(self.normalize(images), text.vectors, head=False)
            return DensePrediction(matched.score_map / self.temperature)
        if text.num_classes != self.network.num_classes:
            raise InputError(
                f"The head of this DenseCLIP has {self.network.num_classes} classes and was given {text.num_classes}: "
                "evaluate on the training vocabulary, or set model.open_vocabulary: true to predict with the score map."
            )
        return DensePrediction(self.run_network(images, text).class_logits.float())

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: TrainingBatch) -> Losses:
        """Compute cross entropy of the head and of the score map; see `SegmentationModule.losses`."""
        training = self.training_classes
        if len(training) != self.network.num_classes:
            raise InputError(
                f"model.num_classes is {self.network.num_classes}, but the training vocabulary "
                f"{training.vocabulary.name!r} has {len(training)} seen classes; set it to {len(training)}."
            )
        output = self.run_network(batch["image"], training.text())
        return self.losses_of(output, training.targets(batch["semantic"]), training.ignore_index)

    def losses_of(self, output: DenseCLIPOutput, labels: Tensor, ignore_index: int) -> Losses:
        """Weigh the losses of what the network gave, against labels `(B, H, W)`."""
        size = (labels.shape[1], labels.shape[2])
        logits = resize(output.class_logits, size)
        losses = {"cross_entropy": pixel_cross_entropy(logits, labels, ignore_index, self.average)}
        if output.score_map is not None:
            scores = resize(output.score_map / self.temperature, size)
            loss = pixel_cross_entropy(scores, labels, ignore_index, self.average)
            losses["score_map"] = self.score_weight * loss
        return Losses(losses, {"pixel_accuracy": lambda: pixel_accuracy(logits, labels, ignore_index)})

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Give the published groups: the encoder at a tenth of the rate; the context decoder's layer norms undecayed.

        Only what has `norm` in its official name and lies outside the encoder goes without decay; BatchNorms, other
        layer norms, biases, contexts and gamma do decay.
        """
        groups: dict[str, list[Tensor]] = {"backbone": [], "norm": [], "rest": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = "backbone" if ".encoder." in name else "norm" if ".norm" in name else "rest"
                groups[kind].append(parameter)
        yield {"params": groups["backbone"], "lr": base_rate * self.backbone_rate, "name": "backbone"}
        if groups["norm"]:
            yield {"params": groups["norm"], "weight_decay": 0.0, "name": "norm"}
        yield {"params": groups["rest"], "name": "rest"}


def take_weights(visual: nn.Module, start: CLIPSettings) -> None:
    """Copy the weights of another CLIP's image tower where name and shape are the same.

    Raises:
        InputError: Nothing fits.
    """
    donor = start.build("trained").take_image_tower()
    own, other = visual.state_dict(), {} if donor is None else donor.visual.state_dict()
    fitting = {name: value for name, value in other.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        raise InputError(f"No weight of the image tower of {start.model!r} fits: name a CLIP of the same kind.")
    visual.load_state_dict(own | fitting)
