"""The trained part of FC-CLIP: pixel decoder, mask decoder, in-vocabulary classifier, void."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.layers import MLP, MaskedAttentionDecoder, PixelDecoder, full_precision, pool_by_masks


@dataclass(frozen=True)
class PixelDecoderSizes:
    """Sizes of the pixel decoder; see `ovsl.layers.PixelDecoder`.

    Args:
        width: Channels of the multi-scale features, divisible by 32.
        num_heads: Heads of the deformable attention.
        num_points: Points per head and level.
        num_layers: Number of encoder layers.
        feed_forward: Hidden width of their feed-forward networks.
    """

    width: int = 256
    num_heads: int = 8
    num_points: int = 4
    num_layers: int = 6
    feed_forward: int = 1024


@dataclass(frozen=True)
class MaskDecoderSizes:
    """Sizes of the mask decoder; see `ovsl.layers.MaskedAttentionDecoder`.

    Args:
        width: Size of the queries, and channels of the mask features.
        num_queries: Number of queries.
        num_heads: Heads of the attentions.
        num_layers: Number of layers.
        feed_forward: Hidden width of their feed-forward networks.
    """

    width: int = 256
    num_queries: int = 250
    num_heads: int = 8
    num_layers: int = 9
    feed_forward: int = 2048


@dataclass(frozen=True)
class FCCLIPSizes:
    """Sizes of what FC-CLIP trains; the defaults are those of the published models.

    Args:
        pixel_decoder: Sizes of the pixel decoder.
        mask_decoder: Sizes of the mask decoder.
    """

    pixel_decoder: PixelDecoderSizes = PixelDecoderSizes()
    mask_decoder: MaskDecoderSizes = MaskDecoderSizes()


class FCCLIPOutput(NamedTuple):
    """What the network gives for the queries of one layer.

    Attributes:
        class_logits: One for each text, void last, `(B, Q, N + 1)` float32.
        mask_logits: `(B, Q, H/4, W/4)`.
        auxiliary: The same of the layers before, first to last; empty unless asked for.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple[FCCLIPOutput, ...] = ()


class ClassHead(nn.Module):
    """Embeds queries in the joint image-text space: the in-vocabulary classifier (paper, section 3.3).

    Args:
        width: Size of the queries, and channels of the mask features.
        embedding_dimension: Size D of the joint space.
    """

    def __init__(self, width: int, embedding_dimension: int) -> None:
        super().__init__()
        self.pooling_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.class_embedding = MLP(width, width, width, embedding_dimension)

    def forward(self, queries: Tensor, mask_features: Tensor, mask_logits: Tensor) -> Tensor:
        """Embed.

        Args:
            queries: Normalised queries `(B, Q, width)`.
            mask_features: `(B, width, h, w)`.
            mask_logits: `(B, Q, h, w)`.

        Returns:
            `(B, Q, D)`, not normalised.
        """
        return self.class_embedding(self.pooling_projection(pool_by_masks(mask_features, mask_logits)) + queries)


class FCCLIPNetwork(nn.Module):
    """Backbone maps to masks and their class logits.

    Args:
        channels: Channels of the backbone maps at stride 4, 8, 16 and 32.
        embedding_dimension: Size D of the joint image-text space.
        sizes: Sizes of the two decoders.
    """

    def __init__(self, channels: Sequence[int], embedding_dimension: int, sizes: FCCLIPSizes) -> None:
        super().__init__()
        pixel, mask = sizes.pixel_decoder, sizes.mask_decoder
        self.pixel_decoder = PixelDecoder(
            channels, pixel.width, mask.width, pixel.num_heads, pixel.num_points, pixel.num_layers, pixel.feed_forward
        )
        self.mask_decoder = MaskedAttentionDecoder(
            pixel.width, mask.width, mask.num_queries, mask.num_heads, mask.num_layers, mask.feed_forward
        )
        self.class_head = ClassHead(mask.width, embedding_dimension)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.void_embedding = nn.Parameter(torch.randn(1, embedding_dimension))

    def forward(self, features: Sequence[Tensor], text: Tensor, auxiliary: bool = False) -> FCCLIPOutput:
        """Predict.

        Args:
            features: Backbone maps at stride 4, 8, 16 and 32.
            text: Unit text embeddings `(N, D)`.
            auxiliary: Also give the predictions before the last layer, which training supervises.
        """
        mask_features, levels = self.pixel_decoder(features)
        *earlier, last = (
            FCCLIPOutput(
                self.classify(self.class_head(queries, mask_features, mask_logits), text, self.logit_scale), mask_logits
            )
            for queries, mask_logits in self.mask_decoder(mask_features, levels, auxiliary)
        )
        return FCCLIPOutput(last.class_logits, last.mask_logits, tuple(earlier))

    def classify(self, embeddings: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
        """Return scaled cosines with the texts and void.

        Args:
            embeddings: `(B, Q, D)`.
            text: Unit text embeddings `(N, D)`.
            logit_scale: Logarithm of the scale; the scale is at most 100, as in CLIP.

        Returns:
            `(B, Q, N + 1)` float32, void last.
        """
        with full_precision(embeddings.device):
            vectors = torch.cat([text, functional.normalize(self.void_embedding, dim=-1)]).float()
            cosines = functional.normalize(embeddings.float(), dim=-1) @ vectors.T
            return cosines * logit_scale.float().exp().clamp(max=100.0)
