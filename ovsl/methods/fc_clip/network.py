"""The trained part of FC-CLIP: pixel decoder, mask decoder, in-vocabulary classifier, void."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import TextEmbeddings
from ovsl.layers import MLP, MaskedAttentionDecoder, PixelDecoder, full_precision, pool_by_masks


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
            queries: Normalised queries ``(B, Q, width)``.
            mask_features: ``(B, width, h, w)``.
            mask_logits: ``(B, Q, h, w)``.

        Returns:
            ``(B, Q, D)``, not normalised.
        """
        return self.class_embedding(self.pooling_projection(pool_by_masks(mask_features, mask_logits)) + queries)


class FCCLIPNetwork(nn.Module):
    """Backbone maps to masks and their class logits.

    Args:
        pixel_decoder: Makes mask features and multi-scale features.
        mask_decoder: Makes queries and masks of them.
        embedding_dimension: Size D of the joint image-text space.
    """

    def __init__(
        self, pixel_decoder: PixelDecoder, mask_decoder: MaskedAttentionDecoder, embedding_dimension: int
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.mask_decoder = mask_decoder
        self.class_head = ClassHead(mask_decoder.width, embedding_dimension)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.void_embedding = nn.Parameter(torch.randn(1, embedding_dimension))

    def forward(
        self, features: Sequence[Tensor], text: TextEmbeddings, intermediate: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Predict.

        Args:
            features: Backbone maps at stride 4, 8, 16 and 32.
            text: Text embeddings of C classes.
            intermediate: Also give the predictions before the last layer, which training supervises.

        Returns:
            Class logits ``(B, Q, C + 1)``, void last, and mask logits ``(B, Q, H/4, W/4)`` of each prediction, the
            final one last.
        """
        mask_features, levels = self.pixel_decoder(features)
        predictions = self.mask_decoder(mask_features, levels)
        return [
            (self.classify(self.class_head(queries, mask_features, mask_logits), text, self.logit_scale), mask_logits)
            for queries, mask_logits in (predictions if intermediate else predictions[-1:])
        ]

    def classify(self, embeddings: Tensor, text: TextEmbeddings, logit_scale: Tensor) -> Tensor:
        """Scaled cosine with the texts, the best synonym speaking for its class.

        Args:
            embeddings: ``(B, Q, D)``.
            text: Text embeddings of C classes.
            logit_scale: Logarithm of the scale; the scale is at most 100, as in CLIP.

        Returns:
            ``(B, Q, C + 1)`` float32, void last.
        """
        with full_precision(embeddings.device):
            vectors = torch.cat([text.vectors, functional.normalize(self.void_embedding, dim=-1)]).float()
            scores = functional.normalize(embeddings.float(), dim=-1) @ vectors.T
            scores = scores * logit_scale.float().exp().clamp(max=100.0)
            return torch.cat([text.per_class(scores[..., :-1], dim=-1), scores[..., -1:]], dim=-1)
