"""CAT-Seg as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import CLIPSettings, SynonymRule, TextEmbeddings, ViTTower
from ovsl.data.batches import TrainingBatch
from ovsl.errors import InputError
from ovsl.evaluation import Words
from ovsl.inference import DensePrediction, Inference, Prediction, resize
from ovsl.layers import pad_to_multiple
from ovsl.methods.base import Losses, SegmentationModule
from ovsl.methods.cat_seg.aggregation import Chunks
from ovsl.methods.cat_seg.inference import WindowsAndGlobalView
from ovsl.methods.cat_seg.network import CATSegNetwork, CATSegOutput, CATSegSizes
from ovsl.methods.cat_seg.text import TrainedTextClassifier
from ovsl.methods.schedules import CosineSchedule, Schedule
from ovsl.vocabulary import Vocabulary


class CATSeg(SegmentationModule):
    """Aggregation of the costs between dense CLIP features and texts, with CLIP's queries and values fine-tuned.

    Cho, Shin, Hong, Arnab, Seo, Kim: *CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation*, CVPR 2024,
    https://arxiv.org/abs/2303.11797 (the CVPR version, which needs no other backbone). The cosines of patches and
    texts are refined alternately over space and over classes and upsampled with features of intermediate CLIP blocks;
    no weight belongs to a class. Of both CLIP towers the query and value projections train, through the costs alone.

    The defaults are those of the published ViT-B/16 model. As published, ignored pixels are negatives of every class.
    Pixels of unseen classes are ignored ones. Deviations: prompts of several templates are averaged to one embedding
    (the released code cannot run them); text embeddings are never older than the weights.

    Args:
        clip: The CLIP; its image tower has to be a vision transformer with a class token.
        sizes: Sizes of the network.
        templates: Prompt template set.
        synonyms: See `SegmentationModule`; published with the first name of a class.
        clip_rate: Factor of the learning rate of what trains of CLIP.
        class_chunk_size: Class maps that are worked on at a time in inference, and in training with
            `checkpoint_activations`.
        checkpoint_activations: Keep only the inputs of blocks in training and compute the rest twice.
        size_divisor: Training images are padded to multiples of it, and labels are compared with the map of the
            padded image, as released: choose crops that it divides.
        train_clip: Substrings of CLIP parameter names that train.
        inference: The published evaluation, on images whose short side is 640.
        optimizer: Published optimiser.
        schedule: Published schedule.
        **kwargs: See `SegmentationModule`. Where `class_names` gives a class several, each is a class of its own until
            labels are found; classes that it does not know show what stands before the first comma of their name.
    """

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        sizes: CATSegSizes = CATSegSizes(),
        templates: str = "cat_seg",
        synonyms: SynonymRule | None = None,
        clip_rate: float = 0.01,
        class_chunk_size: int = 32,
        checkpoint_activations: bool = False,
        size_divisor: int = 32,
        train_clip: tuple[str, ...] = ("attn.q_proj_weight", "attn.v_proj_weight"),
        inference: Inference = WindowsAndGlobalView(),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=2e-4, weight_decay=1e-4),
        schedule: Schedule = CosineSchedule(),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip=clip,
            templates=templates,
            synonyms=synonyms,
            train_clip=train_clip,
            inference=inference,
            optimizer=optimizer,
            schedule=schedule,
            **kwargs,
        )
        self.tower = self.clip.require_tower(ViTTower, "CAT-Seg")
        if not all(0 <= block < self.tower.num_layers for block in sizes.guidance_blocks):
            raise InputError(
                f"sizes.guidance_blocks is {list(sizes.guidance_blocks)}, but the image tower of {self.clip.name!r} "
                f"has blocks 0 to {self.tower.num_layers - 1}."
            )
        self.network = CATSegNetwork(
            self.tower.width,
            self.clip.embedding_dimension,
            sizes,
            Chunks(class_chunk_size, checkpoint_activations),
        )
        self.checkpoint_activations = checkpoint_activations
        self.clip_rate = clip_rate
        self.size_divisor = size_divisor

    def network_input(self, images: Tensor, size_divisor: int = 1) -> Tensor:
        """Images uint8, or 0..1, `(B, 3, H, W)` -> normalised, padded with zeros, and resized to what CLIP sees."""
        images = pad_to_multiple(self.clip.normalize(images), size_divisor)
        return resize(images, self.network.sizes.input_size)

    def run_network(self, images: Tensor, text: TextEmbeddings, size_divisor: int = 1) -> CATSegOutput:
        """Logits of every row of the text, for images uint8 `(B, 3, H, W)`."""
        return self.network(self.tower, self.network_input(images, size_divisor), text.vectors)

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Logits of independent classes; see `SegmentationModule.forward`."""
        return DensePrediction(text.per_class(self.run_network(images, text).logits.float()), "sigmoid")

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> CATSegOutput:
        """All views of the published evaluation, with guidance and padding repeated; see `SegmentationModule`."""
        views = self.inference.views(images) if isinstance(self.inference, WindowsAndGlobalView) else images
        return self.network(self.tower, self.network_input(views), text.vectors, as_released=True)

    def text_encoder(self) -> TrainedTextClassifier:
        """Embed with the text tower as it is at that moment; see `SegmentationModule.text_encoder`."""
        return TrainedTextClassifier(
            self.clip, self.templates, self.synonyms, self.class_names, self.checkpoint_activations
        )

    def words(self, vocabulary: Vocabulary) -> Words:
        """Ask every name of a list in `class_names` as a class of its own; see `SegmentationModule.words`."""
        with torch.no_grad():
            words = super().words(vocabulary)
        text = words.text
        if self.synonyms == "max" or len(text.vectors) == text.num_classes:
            return words
        rows = torch.arange(len(text.vectors), device=text.vectors.device)
        return replace(words, text=TextEmbeddings(text.vectors, rows, len(rows)), positions=text.class_index)

    def losses(self, batch: TrainingBatch) -> Losses:
        """Binary cross entropy of every pixel and class; see `SegmentationModule.losses`."""
        text = self.training_classes.text()
        logits = text.per_class(self.run_network(batch["image"], text, self.size_divisor).logits.float())
        labels = self.training_classes.targets(batch["semantic"])
        logits = resize(logits, (labels.shape[1], labels.shape[2]))
        # Ignored labels are none of the classes: a negative of each.
        classes = torch.arange(logits.shape[1], device=labels.device)
        targets = (labels.unsqueeze(1) == classes.view(-1, 1, 1)).to(logits.dtype)
        return Losses({"binary_cross_entropy": functional.binary_cross_entropy_with_logits(logits, targets)})

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Give the published groups: CLIP at a hundredth of the rate, norms without decay; biases and padding decay."""
        norms = [m for m in self.network.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
        free = {id(parameter) for norm in norms for parameter in norm.parameters()}
        network = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        clip = [parameter for parameter in self.clip.parameters() if parameter.requires_grad]
        yield {"params": [p for p in network if id(p) not in free], "name": "network"}
        yield {"params": [p for p in network if id(p) in free], "weight_decay": 0.0, "name": "norms"}
        if clip:
            yield {"params": clip, "lr": base_rate * self.clip_rate, "name": "clip"}
