"""SAN as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextEmbeddings, ViTTower
from ovsl.data import EvaluationTransform
from ovsl.data.batches import TrainingBatch
from ovsl.inference import Inference, MaskPrediction, WholeImage
from ovsl.layers import pad_to_multiple
from ovsl.losses import HungarianMatcher, MaskSetCriterion
from ovsl.methods.base import Losses, SegmentationModule
from ovsl.methods.no_object import merge_names
from ovsl.methods.san.network import Recognition, SANOutput, SANSizes, SideAdapterNetwork
from ovsl.methods.schedules import PolynomialSchedule, Schedule


class SAN(SegmentationModule):
    """Side adapter network: masks from a light network beside a frozen CLIP, which itself names them.

    Xu, Zhang, Wei, Hu, Bai: *Side Adapter Network for Open-Vocabulary Semantic Segmentation*, CVPR 2023,
    https://arxiv.org/abs/2302.12242. A small vision transformer reads the full-resolution image and the features of
    CLIP's first blocks, and predicts masks and, for each of them, attention biases. In CLIP's last blocks every mask
    has a copy of the class token, steered to its region by the biases; what comes out is matched with the text
    embeddings and a learned no-object embedding. Trained with the mask set losses of Mask2Former on two levels.

    The defaults are those of the published ViT-B/16 model. Ignored pixels count as background of every mask, as
    published. Pixels of unseen classes are ignored ones.

    Args:
        clip: The frozen CLIP; its image tower has to be a vision transformer.
        sizes: Sizes of the trained network.
        clip_scale: Size of CLIP's input relative to the side network's; 0.7 for ViT-L/14.
        supervised_blocks: Side blocks that are decoded in training, counted from 1; evaluation decodes the last.
        rescale_bias: Whether a learned scalar factor and offset act on all attention biases.
        recognition: `shared` runs CLIP's own tokens once, computes no attention that is cut, and maps queries rather
            than pixels to the embeddings of the biases; `literal` is the published form with the same result.
        checkpoint_activations: Keep only the inputs of all blocks in training and compute the rest twice.
        templates: Prompt template set.
        size_divisor: Images are padded at the bottom and right, with zeros after normalisation, to multiples of it.
        class_weight: Weight of the class cross entropy, in the loss and in the matching.
        mask_weight: Weight of the mask cross entropy, likewise.
        dice_weight: Weight of the dice loss, likewise.
        no_object_weight: Class weight of no-object.
        num_points: Points for each mask in matching and losses.
        train_clip: CLIP's position embedding trains, class row included; everything else of it is frozen.
        inference: The whole image, masks at the original size before they are combined with the classes, as published.
        optimizer: Published optimiser, of one rate for everything that trains.
        schedule: Published schedule, over 60,000 steps.
        **kwargs: See `SegmentationModule`.
    """

    predicts_masks = True
    photo_transform = EvaluationTransform(640, 2560, enlarge=False, min_size=64)

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        sizes: SANSizes = SANSizes(),
        clip_scale: float = 0.5,
        supervised_blocks: tuple[int, ...] = (7, 8),
        rescale_bias: bool = True,
        recognition: Recognition = "shared",
        checkpoint_activations: bool = False,
        templates: str = "vild_14",
        size_divisor: int = 32,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        train_clip: tuple[str, ...] = ("visual.positional_embedding",),
        inference: Inference = WholeImage(resize_masks_first=True),
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4),
        schedule: Schedule = PolynomialSchedule(power=0.9),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip=clip,
            templates=templates,
            train_clip=train_clip,
            inference=inference,
            optimizer=optimizer,
            schedule=schedule,
            **kwargs,
        )
        self.tower = self.clip.require_tower(ViTTower, "SAN")
        self.network = SideAdapterNetwork(
            self.tower, sizes, clip_scale, supervised_blocks, rescale_bias, recognition, checkpoint_activations
        )
        width = self.clip.embedding_dimension
        self.no_object_embedding = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.size_divisor = size_divisor
        weights = {"class_weight": class_weight, "mask_weight": mask_weight, "dice_weight": dice_weight}
        self.criterion = MaskSetCriterion(
            HungarianMatcher(num_points=num_points, **weights),
            no_object_weight=no_object_weight,
            num_points=num_points,
            **weights,
        )

    def pad(self, maps: Tensor, value: float = 0) -> Tensor:
        """Pad `(..., H, W)` at the bottom and right to multiples of `size_divisor`."""
        return pad_to_multiple(maps, self.size_divisor, value)

    def text_rows(self, text: TextEmbeddings) -> Tensor:
        """Text embeddings with the current no-object embedding as last row, all unit vectors: `(N + 1, D)`."""
        return functional.normalize(torch.cat([text.vectors, self.no_object_embedding]), dim=1)

    def class_logits(self, output: SANOutput, text: TextEmbeddings) -> Tensor:
        """Scale the network's cosines, the best synonym speaking for its class: `(B, Q, C + 1)`, no-object last."""
        return merge_names(self.clip.logit_scale * output.class_logits, text)

    def forward(self, images: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """Masks and their class probabilities; see `SegmentationModule.forward`."""
        return self.predict_masks(self.pad(self.clip.normalize(images)), text)

    def released_network(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> object:
        """Run the network in its published form, whatever `recognition` is."""
        padded = self.pad(self.clip.normalize(images))
        return self.network(padded, self.text_rows(text), recognition="literal")

    def predict_masks(self, images: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """Like `forward`, for images that are normalised and padded already."""
        output = self.network(images, self.text_rows(text))
        probabilities = self.class_logits(output, text).softmax(dim=2)
        padded_size = (images.shape[2], images.shape[3])
        return MaskPrediction(output.mask_logits, probabilities[..., :-1], probabilities[..., -1], padded_size)

    def losses(self, batch: TrainingBatch) -> Losses:
        """Compute class, mask and dice losses of every supervised block; see `SegmentationModule.losses`."""
        targets = self.training_classes.masks(batch)
        # Padding belongs to no mask, like ignored pixels.
        targets = replace(targets, masks=self.pad(targets.masks))
        text = self.training_classes.text()
        images = self.pad(self.clip.normalize(batch["image"]))
        last = self.network(images, self.text_rows(text), auxiliary=True)
        predictions = [(self.class_logits(one, text), one.mask_logits) for one in (*last.auxiliary, last)]
        return Losses(self.criterion(predictions, targets))

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """Two groups of one learning rate: norms of the side blocks, positions and queries do not decay.

        As published, biases, the norms of the fusions and the no-object embedding do decay.
        """
        side = self.network.side_network
        free = {id(p) for m in side.blocks.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        free |= {id(side.position_embedding), id(side.query_embedding), id(side.query_position_embedding)}
        free |= {id(parameter) for name, parameter in self.clip.named_parameters() if "positional_embedding" in name}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        yield {"params": [p for p in trained if id(p) not in free], "name": "decayed"}
        yield {"params": [p for p in trained if id(p) in free], "weight_decay": 0.0, "name": "not_decayed"}
