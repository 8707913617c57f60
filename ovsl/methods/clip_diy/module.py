"""CLIP-DIY as a LightningModule."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings, ViTTower
from ovsl.evaluation import Words
from ovsl.inference import DensePrediction, Inference, NearestLabels, Prediction, resize
from ovsl.layers import FOUNDSettings
from ovsl.methods.background import check_background_first
from ovsl.methods.base import SegmentationModule
from ovsl.methods.clip_diy.network import (
    CLIPDIYSizes,
    ImageEmbedding,
    aggregate,
    guide,
    resize_bilinear,
    resized_crops,
)
from ovsl.vocabulary import Vocabulary


class CLIPDIY(SegmentationModule):
    """Overlapping crops of three sizes, each classified by CLIP as an image; FOUND says what is foreground.

    Wysoczanska, Ramamonjisoa, Trzcinski, Simeoni: *CLIP-DIY: CLIP Dense Inference Yields Open-Vocabulary Semantic
    Segmentation For-Free*, WACV 2024, arXiv 2309.14289. Nothing trains. As in the official code the grid of a crop size
    is stretched over the whole image as if its overlapping crops were tiles. Images come as they are; their foreground
    is found at their own size.

    Args:
        clip: The frozen CLIP, a vision transformer with a class token.
        sizes: Sizes of images and crops.
        foreground: The FOUND that guides; class 0 then has to be `background`. None for no guidance, as on datasets
            without a background class.
        interpolation: How the grid of a crop size is stretched.
        window_batch_size: Crops that go through CLIP together.
        templates: One prompt, as published.
        inference: Labels are decided at `sizes.image_size` and enlarged as labels, as published.
        **kwargs: See `ovsl.methods.base.SegmentationModule`.

    Raises:
        InputError: A CLIP without a class token or with a convolutional tower, or sizes that do not fit together.
    """

    trainable = False

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        sizes: CLIPDIYSizes = CLIPDIYSizes(),
        foreground: FOUNDSettings | None = None,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        window_batch_size: int = 64,
        templates: str = "single",
        inference: Inference = NearestLabels(),
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, templates=templates, inference=inference, **kwargs)
        tower = self.clip.require_tower(ViTTower, "CLIP-DIY")
        self.network = ImageEmbedding(tower)
        self.levels = sizes.levels
        self.sizes = sizes
        self.crop_side = tower.grid[0] * tower.patch_size
        self.found = None if foreground is None else foreground.build()
        self.interpolation = interpolation
        self.window_batch_size = window_batch_size

    def grids(self, images: Tensor, text: TextEmbeddings) -> list[Tensor]:
        """Cosine of every crop with every class.

        Args:
            images: uint8 RGB `(B, 3, S, S)`.
            text: Text embeddings of C classes.

        Returns:
            For each level `(B, C, n, n)`.
        """
        levels = resized_crops(images, self.levels, self.crop_side)
        # One queue for the crops of all levels and images, so that no batch through CLIP is small.
        queue = torch.cat([level.flatten(0, 2) for level in levels])
        embeddings = [self.network(self.clip.normalize(part)) for part in queue.split(self.window_batch_size)]
        scores = text.per_class(torch.cat(embeddings) @ text.vectors.T)
        by_level = scores.split([level.shape[:3].numel() for level in levels])
        return [
            part.unflatten(0, level.shape[:3]).permute(0, 3, 1, 2) for part, level in zip(by_level, levels, strict=True)
        ]

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Class scores at `sizes.image_size`, guided by the foreground, see `SegmentationModule.forward`."""
        side = self.sizes.image_size
        grids = self.grids(resize_bilinear(images, side), text)
        scores = aggregate(grids, self.sizes.weights, side, self.interpolation)
        if self.found is not None:
            scores = guide(scores, resize(self.found.saliency(images), (side, side)))
        return DensePrediction(scores)

    def words(self, vocabulary: Vocabulary) -> Words:
        """Take a vocabulary to choose from.

        Raises:
            InputError: The foreground guides, but class 0 is something else than the background.
        """
        if self.found is not None:
            check_background_first(vocabulary, "foreground: null")
        return super().words(vocabulary)
