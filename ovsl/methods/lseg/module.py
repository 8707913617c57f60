"""LSeg as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import timm
import torch
from lightning.pytorch.cli import OptimizerCallable
from timm.data import constants
from torch import Tensor
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.data.batches import TrainingBatch
from ovsl.errors import InputError
from ovsl.inference import DensePrediction, Inference, Prediction
from ovsl.layers import ImageNormalization, pad_to_multiple
from ovsl.losses import pixel_cross_entropy
from ovsl.methods.base import Losses, SegmentationModule
from ovsl.methods.lseg.multi_scale_sum import MultiScaleSum
from ovsl.methods.lseg.network import (
    LSegNetwork,
    LSegSizes,
    Matching,
    ResNetPyramid,
    SpatialRegularizer,
    ViTPyramid,
)
from ovsl.methods.schedules import PolynomialSchedule, Schedule
from ovsl.vocabulary import Vocabulary

REASSEMBLE = {16: (256, 512, 1024, 1024), 32: (96, 192, 384, 768)}
OTHERS = "others"


class LSeg(SegmentationModule):
    """Pixel embeddings of a dense prediction transformer, trained to match CLIP's text embeddings of the labels.

    Li, Weinberger, Belongie, Koltun, Ranftl: *Language-driven Semantic Segmentation*, ICLR 2022,
    https://arxiv.org/abs/2201.03546. An ImageNet vision transformer with DPT's decoder gives every pixel an embedding;
    logits are its scaled cosines with the text embeddings of any list of labels, shown bare. CLIP's image tower is not
    used. Cross entropy over the training labels is the only loss.

    Differences from the official code: text embeddings are computed once; weights that no output depends on (final
    norm and classifier of the transformer, first unit of the coarsest fusion block) do not exist; images whose sides
    32 does not divide are padded, not cut or refused; the learning rate falls with every step, not every epoch.

    Args:
        clip: The CLIP whose text tower embeds the labels: ViT-B-32 in the released model, RN50x16 for the best one.
        backbone: timm vision transformer with patches of 16 or 32, or ResNet: `vit_large_patch16_384`,
            `vit_base_patch32_384`, `resnet101`.
        backbone_pretrained: Load timm's ImageNet weights of the backbone.
        backbone_options: More arguments of `timm.create_model`.
        blocks: Transformer blocks that are read, 0-based; None for the ends of the four quarters.
        sizes: Sizes of what is added to the backbone.
        regularizer: Spatial regularisation of the logits, section 3.3 of the paper; `none` in the released models.
        regularizer_depth: Its repetitions.
        regularizer_activation: Its activation.
        matching: `float16` for the rounding of the official code on a GPU.
        objective: `all_classes` is cross entropy over the training labels (ADE20K); `one_class` asks of each image
            one of its classes against the label "others" (the zero-shot experiments on few-shot folds).
        class_names: See `SegmentationModule`. The official ADE20K run (`lseg`) shows only the first word of some, since
            its label file separates words as it separates synonyms; with `one_class` a background is "others".
        decoder_rate: Factor of the learning rate of decoder and head.
        templates: Labels are shown bare.
        inference: Published multi-scale evaluation; a plain `WholeImage` is 12 times cheaper.
        optimizer: Published optimiser. The published rate is 0.004 / 16 times the images of one GPU, here 4.
        schedule: Published schedule.
        **kwargs: See `SegmentationModule`.
    """

    image_tower = "unused"

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        backbone: str = "vit_large_patch16_384",
        backbone_pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        blocks: Sequence[int] | None = None,
        sizes: LSegSizes = LSegSizes(),
        regularizer: Literal["none", "bottleneck", "depthwise"] = "none",
        regularizer_depth: int = 1,
        regularizer_activation: Literal["lrelu", "tanh"] = "lrelu",
        matching: Matching = "float32",
        objective: Literal["all_classes", "one_class"] = "all_classes",
        class_names: dict[str, Any] | str | None = None,
        decoder_rate: float = 10.0,
        templates: str = "identity",
        inference: Inference = MultiScaleSum(),
        optimizer: OptimizerCallable = lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = PolynomialSchedule(power=0.9),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip=clip,
            templates=templates,
            class_names=class_names,
            inference=inference,
            optimizer=optimizer,
            schedule=schedule,
            **kwargs,
        )
        encoder = build_encoder(backbone, backbone_pretrained, backbone_options or {}, blocks, sizes.reassemble)
        # Transformers see 0.5 as mean and deviation in the official code, the ResNet ImageNet's.
        half = (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD)
        imagenet = (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
        self.normalize = ImageNormalization(*(half if isinstance(encoder, ViTPyramid) else imagenet))
        self.network = LSegNetwork(
            encoder,
            self.clip.embedding_dimension,
            sizes.width,
            None
            if regularizer == "none"
            else SpatialRegularizer(regularizer, regularizer_depth, regularizer_activation),
            matching,
        )
        self.objective = objective
        self.decoder_rate = decoder_rate

    def class_logits(self, images: Tensor, text: Tensor) -> Tensor:
        """Classify images `(B, 3, H, W)` with texts `(K, D)` or `(B, K, D)`: `(B, K, H, W)`."""
        height, width = images.shape[-2:]
        # Black is padded before the normalisation, which is what the official evaluation pads with.
        logits: Tensor = self.network(self.normalize(pad_to_multiple(images, 32)), text).class_logits
        return logits[..., :height, :width]

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> object:
        """Embed every pixel, as the official code does; see `SegmentationModule.released_network`."""
        return self.network(self.normalize(pad_to_multiple(images, 32)), text.vectors, as_published=True)

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Class logits; with `one_class` those over the logit of "others". See `SegmentationModule.forward`."""
        if self.objective == "all_classes":
            return DensePrediction(text.per_class(self.class_logits(images, text.vectors)))
        logits = self.class_logits(images, torch.cat([self._others(), text.vectors]))
        return DensePrediction(text.per_class(logits[:, 1:] - logits[:, :1]))

    def losses(self, batch: TrainingBatch) -> Losses:
        """Cross entropy over the training labels; see `SegmentationModule.losses`."""
        training = self.training_classes
        ignore_index = training.ignore_index
        labels, text = training.targets(batch["semantic"]), training.text()
        if self.objective == "all_classes":
            logits = text.per_class(self.class_logits(batch["image"], text.vectors))
            return Losses({"cross_entropy": pixel_cross_entropy(logits, labels, ignore_index)})
        if len(text.vectors) != text.num_classes:
            raise InputError("The objective one_class shows one name of a class; set model.synonyms to first or mean.")
        # A class that is shown as "others" is what every other class is asked against.
        others = [i for i, name in enumerate(self.class_names.principal(training.seen)) if name == OTHERS]
        askable = labels.masked_fill(torch.isin(labels, labels.new_tensor(others)), ignore_index)
        asked = sample_classes(askable, text.num_classes)
        pairs = torch.stack([self._others().expand(len(asked), -1), text.vectors[asked]], dim=1)
        logits = self.class_logits(batch["image"], pairs)
        # Officially nothing is ignored: pixels without a label count as "others".
        target = (labels == asked.view(-1, 1, 1)).long()
        losses = functional.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2))
        # Images without a class that may be asked are in no official list.
        listed = (askable != ignore_index).flatten(1).any(dim=1)
        return Losses({"cross_entropy": (losses * listed).sum() / listed.sum().clamp(min=1)})

    def _others(self) -> Tensor:
        return self.text_classifier(Vocabulary.from_words([OTHERS])).vectors

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Give the encoder at the base rate, decoder and head at `decoder_rate` times it."""
        encoder = list(self.network.encoder.parameters())
        members = {id(parameter) for parameter in encoder}
        decoder = [parameter for parameter in self.network.parameters() if id(parameter) not in members]
        yield {"params": encoder, "name": "encoder"}
        yield {"params": decoder, "lr": base_rate * self.decoder_rate, "name": "decoder"}


def sample_classes(labels: Tensor, num_classes: int) -> Tensor:
    """One class of each image, drawn evenly from those in it; from all classes where an image has none.

    Args:
        labels: int64 `(B, H, W)`; values outside 0..num_classes - 1 are not drawn.
        num_classes: Number of classes.

    Returns:
        int64 `(B,)`.
    """
    known = (labels >= 0) & (labels < num_classes)
    present = labels.new_zeros(len(labels), num_classes + 1)
    present.scatter_(1, labels.where(known, num_classes).flatten(1), 1)
    weights = present[:, :num_classes].float()
    weights = torch.where(weights.any(dim=1, keepdim=True), weights, torch.ones_like(weights))
    return torch.multinomial(weights, 1).squeeze(1)


def build_encoder(
    name: str, pretrained: bool, options: dict[str, Any], blocks: Sequence[int] | None, channels: Sequence[int] | None
) -> ViTPyramid | ResNetPyramid:
    """Build the image encoder of a timm model; see `LSeg`."""
    if not timm.is_model(name):
        raise InputError(f"timm has no backbone {name!r}; LSeg was published with vit_large_patch16_384.")
    model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    if all(hasattr(model, part) for part in ("conv1", "layer1", "layer4")):
        return ResNetPyramid(model)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (0,))[0]
    if patch not in REASSEMBLE or getattr(model, "cls_token", None) is None:
        raise InputError(
            f"LSeg reads ResNets, and vision transformers with a class token and patches of 16 or 32; {name!r} is "
            "neither. Published: vit_large_patch16_384, vit_base_patch32_384, resnet101."
        )
    depth = len(model.blocks)
    blocks = blocks or tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    if len(blocks) != 4 or not all(0 <= block < depth for block in blocks):
        raise InputError(f"blocks is {list(blocks)}; give four block numbers of {name!r}, from 0 to {depth - 1}.")
    return ViTPyramid(model, blocks, channels or REASSEMBLE[patch])
