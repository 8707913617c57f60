"""CLIP-lightweight as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.data.batches import TrainingBatch
from ovsl.errors import InputError
from ovsl.inference import DensePrediction, Inference, Prediction, SlidingWindow, resize
from ovsl.layers import Backbone, ImageNormalization
from ovsl.losses import Average, pixel_cross_entropy
from ovsl.methods.base import Losses
from ovsl.methods.clip_lightweight.fusion import Bridge, CLIPLightweightSizes, ContextFusion, TwoWayFusion
from ovsl.methods.clip_lightweight.network import CLIPLightweightNetwork, CLIPLightweightOutput
from ovsl.methods.closed_set import ClosedSetModule
from ovsl.methods.schedules import PolynomialSchedule, Schedule


class CLIPLightweight(ClosedSetModule):
    """Language-guided segmentation on light backbones: a CNN and a text transformer with a two-way bridge.

    Jin, Yang: *CLIP for Lightweight Semantic Segmentation*, PRCV 2023, https://arxiv.org/abs/2310.07394. Only the
    abstract was at hand: a fusion module, in which a CNN processes the image's features and a transformer the text
    embeddings in parallel while a bridge exchanges information both ways, makes any backbone fit for language guidance.
    The module here is a Mobile-Former block whose tokens are the class texts; widths, losses and schedule follow
    DenseCLIP. No figure of the paper is claimed.

    Class tokens see each other and the image sees all of them, so the scores of a class change when others are added to
    the vocabulary.

    The same class holds what the paper compares with, on the same backbone, decoder and schedule:

    - plain Semantic FPN, no language: `fusion: none`, `decoder: fpn_concat`;
    - LSeg's principle, pixels matched with fixed texts: `fusion: none`, `decoder: text_match`;
    - DenseCLIP's principle, attention pool and context decoder: `fusion: context`;
    - the bridge taken apart: `bridge: none`, `v2t` or `t2v`.

    Args:
        clip: The CLIP whose text tower embeds the classes; its image tower is not used.
        backbone: timm model with maps at strides 4, 8, 16 and 32, or a plain vision transformer.
        backbone_pretrained: Load timm's weights.
        backbone_options: More arguments of `timm.create_model`, such as `img_size`.
        fusion: `two_way`, `context` (DenseCLIP's) or `none`.
        bridge: Ways of the bridge: `both`, `v2t` (vision to text), `t2v` (text to vision), `none`.
        decoder: `text_match` matches every pixel with the texts, for any vocabulary; `fpn_concat` appends the score
            map to the pyramid and classifies a closed set, whose classes alone it can predict.
        num_classes: Classes of the closed set, for `fpn_concat`.
        sizes: Sizes of what is added to the backbone.
        gamma: Initial weight of what the image adds to the texts.
        temperature: Divisor of cosines.
        score_weight: Weight of the loss on the score map.
        average: Losses are divided by the number of `labelled` pixels, or, as in DenseCLIP, of `all`.
        backbone_rate: Factor of the backbone's learning rate; None for 0.1 with pretrained weights, 1 without.
        inference: Windows, on images whose short side is 512; or `MultiScale`.
        optimizer: Biases, norms and gamma go without decay.
        schedule: DenseCLIP's.
        **kwargs: See `SegmentationModule`.
    """

    image_tower = "unused"

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        backbone: str = "mobilenetv2_100",
        backbone_pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        fusion: Literal["two_way", "context", "none"] = "two_way",
        bridge: Bridge = "both",
        decoder: Literal["text_match", "fpn_concat"] = "text_match",
        num_classes: int | None = None,
        sizes: CLIPLightweightSizes = CLIPLightweightSizes(),
        gamma: float = 0.1,
        temperature: float = 0.07,
        score_weight: float = 0.4,
        average: Average = "labelled",
        backbone_rate: float | None = None,
        inference: Inference = SlidingWindow(crop_size=512, stride=341),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4),
        schedule: Schedule = PolynomialSchedule(power=0.9, minimum=1e-6, warmup_steps=1500),
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, inference=inference, optimizer=optimizer, schedule=schedule, **kwargs)
        if (decoder == "fpn_concat") != (num_classes is not None):
            raise InputError(
                "model.num_classes is for model.decoder: fpn_concat, and needed there; set both or neither."
            )
        dimension = self.clip.embedding_dimension
        pyramid = Backbone(backbone, backbone_pretrained, backbone_options)
        channels = pyramid.channels[-1]
        module: TwoWayFusion | ContextFusion | None = None
        if fusion == "two_way":
            module = TwoWayFusion(channels, dimension, sizes, bridge, gamma)
        elif fusion == "context":
            module = ContextFusion(channels, dimension, sizes.position_grid)
        self.normalize = ImageNormalization(pyramid.mean, pyramid.std)
        self.network = CLIPLightweightNetwork(pyramid, dimension, module, sizes, num_classes, temperature)
        self.closed_set = num_classes is not None
        self.score_weight = score_weight
        self.average: Average = average
        self.backbone_rate = (0.1 if backbone_pretrained else 1.0) if backbone_rate is None else backbone_rate

    def run_network(self, images: Tensor, text: TextEmbeddings) -> CLIPLightweightOutput:
        """Run the network on images uint8 `(B, 3, H, W)`."""
        output: CLIPLightweightOutput = self.network(self.normalize(images), text.vectors)
        return output

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> CLIPLightweightOutput:
        """Embed every pixel, as the paper has it; see `SegmentationModule.released_network`."""
        output: CLIPLightweightOutput = self.network(self.normalize(images), text.vectors, as_published=True)
        return output

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Give class logits; see `SegmentationModule.forward`."""
        return DensePrediction(text.per_class(self.run_network(images, text).class_logits.float()))

    def losses(self, batch: TrainingBatch) -> Losses:
        """Compute cross entropy of the logits and of the score map; see `SegmentationModule.losses`."""
        training = self.training_classes
        labels, text = training.targets(batch["semantic"]), training.text()
        losses = self.losses_of(self.run_network(batch["image"], text), text, labels, training.ignore_index)
        if not isinstance(self.network.fusion, TwoWayFusion):
            return Losses(losses)
        # Near zero, the image would not reach the texts.
        gamma = self.network.fusion.gamma
        return Losses(losses, {"gamma": lambda: gamma.abs().mean()})

    def losses_of(
        self, output: CLIPLightweightOutput, text: TextEmbeddings, labels: Tensor, ignore_index: int
    ) -> dict[str, Tensor]:
        """Weigh the losses of what the network gave, against labels `(B, H, W)`."""
        size = (labels.shape[1], labels.shape[2])
        logits = resize(text.per_class(output.class_logits), size)
        losses = {"cross_entropy": pixel_cross_entropy(logits, labels, ignore_index, self.average)}
        if output.score_map is not None:
            scores = resize(text.per_class(output.score_map) / self.network.temperature, size)
            losses["score_map"] = self.score_weight * pixel_cross_entropy(scores, labels, ignore_index, self.average)
        return losses

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Give backbone and the rest, each with and without decay: none on norms, biases and gamma."""
        backbone = {id(parameter) for parameter in self.network.backbone.parameters()}
        for part, rate in (("backbone", base_rate * self.backbone_rate), ("rest", base_rate)):
            members = [p for p in self.network.parameters() if (id(p) in backbone) == (part == "backbone")]
            yield {"params": [p for p in members if p.ndim > 1], "lr": rate, "name": part}
            bare = [p for p in members if p.ndim <= 1]
            yield {"params": bare, "lr": rate, "weight_decay": 0.0, "name": f"{part}_no_decay"}
