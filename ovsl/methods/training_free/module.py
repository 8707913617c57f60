"""The training-free line from SCLIP to CorrCLIP as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from open_clip import OPENAI_DATASET_MEAN
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import SynonymRule, TextEmbeddings, ViTTower
from ovsl.inference import DensePrediction, Inference, Prediction, WordClasses, WordInference
from ovsl.layers import ImageNormalization, cosine_scores
from ovsl.methods.base import SegmentationModule
from ovsl.methods.training_free.last_block import LastBlock, TokenAttention

Padding = tuple[int, int, int, int]

CLIP_MEAN_255 = (122.771, 116.746, 104.094)
CLIP_STD_255 = (68.501, 66.632, 70.323)
"""CLIP's mean and deviation for values in 0..255, as the published code rounds them."""

PADDED_REGION = 10000
"""Value of region maps where the image is padded, which makes the padding a region."""


class TrainingFree(SegmentationModule):
    """Dense CLIP without training: another last block, windows joined as cosines, rules for words.

    One skeleton for SCLIP (arXiv 2312.01597), NACLIP (2404.08181), ClearCLIP (2407.12442), ProxyCLIP (2408.04883) and
    CorrCLIP (2411.10086), which follow from `last_block`, `padding` and `inference`; `configs/methods` has each. Words
    of a class compete one by one and are never averaged; see `ovsl.inference.WordInference`.

    Args:
        name: What tables call the method.
        last_block: What replaces the last block of the image tower.
        padding: Windows are padded with the mean colour, centred, to a multiple of this many pixels, or of the `patch`;
            None pads none and lets the patch embedding drop what is left over.
        class_names: Whose words the classes of the shipped vocabularies have: those of `sclip` (NACLIP uses the same),
            `clearclip`, `proxyclip` or `corrclip`; other vocabularies, and None, speak with their own names.
        rounded_normalization: Use CLIP's mean and deviation as the published code rounds them, where the CLIP is
            normalised with CLIP's own.
        synonyms: See `SegmentationModule`; words compete.
        inference: See `SegmentationModule`; windows of 224 pixels by default.
        **kwargs: See `SegmentationModule`.

    Raises:
        InputError: The CLIP has no vision transformer with a class token.
    """

    trainable = False

    @property
    def method_name(self) -> str:
        """See `SegmentationModule`."""
        return self.name

    def __init__(
        self,
        name: str = "SCLIP",
        last_block: LastBlock = TokenAttention(),
        padding: int | Literal["patch"] | None = None,
        class_names: dict[str, Any] | str | None = "sclip",
        rounded_normalization: bool = True,
        synonyms: SynonymRule = "max",
        inference: Inference = WordInference(),
        **kwargs: Any,
    ) -> None:
        super().__init__(synonyms=synonyms, class_names=class_names, inference=inference, **kwargs)
        self.name = name
        self.tower = self.clip.require_tower(ViTTower, name)
        self.last_block = last_block
        self.needs_regions = last_block.needs_regions
        self.padding = self.tower.patch_size if padding == "patch" else padding or 1
        rounded = rounded_normalization and torch.equal(self.clip.mean.flatten(), torch.tensor(OPENAI_DATASET_MEAN))
        mean, std = (CLIP_MEAN_255, CLIP_STD_255) if rounded else (self.clip.mean * 255, self.clip.std * 255)
        self.normalize = ImageNormalization([float(m) / 255 for m in mean], [float(s) / 255 for s in std])

    def dense_features(self, images: Tensor, regions: Tensor | None = None) -> tuple[Tensor, Padding]:
        """Return patch features in the joint space, and by how much their grid reaches beyond the images.

        Args:
            images: uint8 `(B, 3, H, W)`.
            regions: Region maps, integers `(B, H, W)`.

        Returns:
            `(B, D, h, w)`, not normalised; pixels at the left, right, top and bottom.
        """
        padding = centred_padding(images, self.padding)
        normalized = functional.pad(self.normalize(images), padding)
        if regions is not None:
            regions = functional.pad(regions, padding, value=PADDED_REGION)
        colors = normalized * self.clip.std + self.clip.mean
        return self.last_block(self.tower, normalized, colors, regions), padding

    def networks(self) -> Iterable[nn.Module]:
        """Give the last block, which runs the others."""
        return (self.last_block,)

    def forward(self, images: Tensor, text: TextEmbeddings, regions: Tensor | None = None) -> Prediction:
        """Return the cosines of patches and words; see `SegmentationModule.forward`."""
        features, padding = self.dense_features(images, regions)
        several = len(text.vectors) > text.num_classes
        words = WordClasses(text.class_index, text.num_classes) if several else None
        return DensePrediction(cosine_scores(features, text.vectors), padding=padding, word_classes=words)


def centred_padding(images: Tensor, divisor: int) -> Padding:
    """Return what is missing to a multiple of the divisor at the left, right, top and bottom, the odd pixel last."""
    down, right = (-side % divisor for side in images.shape[-2:])
    return right // 2, right - right // 2, down // 2, down - down // 2
