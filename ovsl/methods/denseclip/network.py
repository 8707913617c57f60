"""The DenseCLIP network: the language-guided Semantic FPN, and the plain one that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovsl.layers import ContextDecoder, FeaturePyramid, SemanticFPNHead, score_map
from ovsl.methods.denseclip.encoders import Encoded, Encoder, LanguageEncoder


@dataclass(frozen=True)
class ContextDecoderSizes:
    """Sizes of the context decoder; see `ovsl.layers.ContextDecoder`.

    Args:
        width: Width of the decoder.
        num_heads: Attention heads.
        num_layers: Layers.
    """

    width: int = 256
    num_heads: int = 4
    num_layers: int = 3


@dataclass(frozen=True)
class DenseCLIPSizes:
    """Sizes of what DenseCLIP adds to the image tower; the defaults are the published ones.

    Args:
        context_decoder: Sizes of the decoder that adapts the texts to the image.
        num_contexts: Learned context tokens.
        image_size: Image side that the stored position grid stands for; 512, ViT-B 640.
        fpn_width: Channels of the pyramid.
        head_width: Channels of the head.
    """

    context_decoder: ContextDecoderSizes = ContextDecoderSizes()
    num_contexts: int = 8
    image_size: int = 512
    fpn_width: int = 256
    head_width: int = 256


class DenseCLIPOutput(NamedTuple):
    """What the network gives.

    Attributes:
        class_logits: At the finest level, `(B, num_classes, h, w)`.
        score_map: Cosines `(B, K, h', w')`; None without language.
        text: Text embeddings of each image `(B, K, D)`, not normalised; None without language.
    """

    class_logits: Tensor
    score_map: Tensor | None = None
    text: Tensor | None = None


class Matched(NamedTuple):
    """Texts and cells of images, compared.

    Attributes:
        levels: Maps for the pyramid, the score map appended to one of them.
        score_map: Cosines `(B, K, h', w')`.
        text: Text embeddings of each image `(B, K, D)`, not normalised.
    """

    levels: list[Tensor]
    score_map: Tensor
    text: Tensor


class SemanticFPN(nn.Module):
    """Semantic FPN without language, the paper's baseline.

    Args:
        encoder: Image encoder.
        num_classes: Classes of the head.
        sizes: Sizes of pyramid and head.
        head_dropout: Dropout of the head.
    """

    def __init__(self, encoder: Encoder, num_classes: int, sizes: DenseCLIPSizes, head_dropout: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = encoder
        self.neck = FeaturePyramid(list(encoder.channels), sizes.fpn_width)
        self.head = SemanticFPNHead(sizes.fpn_width, sizes.head_width, num_classes, dropout=head_dropout)

    def forward(self, images: Tensor, text: Tensor) -> DenseCLIPOutput:
        """Segment normalised images `(B, 3, H, W)`; the texts are not looked at."""
        return DenseCLIPOutput(self.head(self.neck(self.encoder(images))))


class DenseCLIPNetwork(nn.Module):
    """Pixel-text score maps from context-aware texts, concatenated to one level of a Semantic FPN.

    Args:
        encoder: Image encoder that embeds cells in the joint space.
        num_classes: Classes of the head.
        embedding_dimension: Size D of the joint space.
        sizes: Sizes.
        head_dropout: Dropout of the head.
        context_dropout: Dropout of the context decoder.
        gamma: Initial weight of what the image adds to the texts.
    """

    def __init__(
        self,
        encoder: LanguageEncoder,
        num_classes: int,
        embedding_dimension: int,
        sizes: DenseCLIPSizes,
        head_dropout: float = 0.1,
        context_dropout: float = 0.1,
        gamma: float = 1e-4,
    ) -> None:
        super().__init__()
        decoder = sizes.context_decoder
        self.num_classes = num_classes
        self.encoder = encoder
        self.context_decoder = ContextDecoder(
            embedding_dimension, decoder.width, decoder.num_heads, decoder.num_layers, context_dropout
        )
        self.gamma = nn.Parameter(torch.full((embedding_dimension,), gamma))
        channels = list(encoder.channels)
        channels[encoder.score_level] += num_classes
        self.neck = FeaturePyramid(channels, sizes.fpn_width)
        self.head = SemanticFPNHead(sizes.fpn_width, sizes.head_width, num_classes, dropout=head_dropout)

    def prompt(self, encoded: Encoded, text: Tensor) -> Tensor:
        """Adapt texts `(K, D)` to each image, `(B, K, D)`: post-model prompting (eq. 5)."""
        visual = torch.cat([encoded.image.unsqueeze(1), encoded.cells.flatten(2).transpose(1, 2)], dim=1)
        text = text.expand(len(visual), -1, -1)
        return text + self.gamma * self.context_decoder(text, visual)

    def match(self, images: Tensor, text: Tensor) -> Matched:
        """Compare the cells of normalised images with any number of texts.

        Args:
            images: `(B, 3, H, W)`.
            text: Text embeddings `(K, D)`, any length.
        """
        encoded: Encoded = self.encoder.embed(images)
        adapted = self.prompt(encoded, text)
        scores = score_map(encoded.cells, adapted)
        levels, place = list(encoded.levels), self.encoder.score_level
        levels[place] = torch.cat([levels[place], scores.to(levels[place].dtype)], dim=1)
        return Matched(levels, scores, adapted)

    def forward(self, images: Tensor, text: Tensor, head: bool = True) -> DenseCLIPOutput | Matched:
        """Segment normalised images with the classes of the head.

        Args:
            images: `(B, 3, H, W)`.
            text: Text embeddings `(num_classes, D)`, any length.
            head: False to compare alone, with any number of texts, see `match`.
        """
        matched = self.match(images, text)
        if not head:
            return matched
        return DenseCLIPOutput(self.head(self.neck(matched.levels)), matched.score_map, matched.text)
