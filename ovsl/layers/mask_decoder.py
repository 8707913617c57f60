"""Masked-attention transformer decoder: queries to masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.layers.attention import MLP, MultiHeadAttention
from ovsl.layers.positions import sine_positions


class MaskedAttentionLayer(nn.Module):
    """Masked cross-attention, self-attention, perceptron: each with a residual and a norm after it.

    Args:
        width: Size of the queries.
        num_heads: Heads of both attentions.
        feed_forward: Hidden size of the perceptron.
    """

    def __init__(self, width: int, num_heads: int, feed_forward: int) -> None:
        super().__init__()
        self.cross_attention = MultiHeadAttention(width, num_heads)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads)
        self.self_attention_norm = nn.LayerNorm(width)
        self.feed_forward = MLP(width, feed_forward, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.feed_forward[0].weight)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.feed_forward[2].weight)  # type: ignore[arg-type]

    def forward(
        self, queries: Tensor, query_positions: Tensor, source: Tensor, positions: Tensor, attended: Tensor
    ) -> Tensor:
        """Update the queries.

        Args:
            queries: `(B, Q, width)`.
            query_positions: `(Q, width)`.
            source: Tokens of one level, `(B, N, width)`.
            positions: Their positions, `(N, width)`.
            attended: bool `(B, Q, N)`, True where a query may look.

        Returns:
            `(B, Q, width)`.
        """
        crossed = self.cross_attention(queries + query_positions, source + positions, source, attended)
        queries = self.cross_attention_norm(queries + crossed)
        placed = queries + query_positions
        queries = self.self_attention_norm(queries + self.self_attention(placed, placed, queries))
        return self.feed_forward_norm(queries + self.feed_forward(queries))


class MaskedAttentionDecoder(nn.Module):
    """Queries that look, layer after layer, at the pixels of the mask they predicted before.

    Cheng et al.: *Masked-attention Mask Transformer for Universal Image Segmentation*, CVPR 2022,
    https://arxiv.org/abs/2112.01527, section 3.2. Classes are left to the method.

    Args:
        in_width: Channels of the multi-scale features; a 1x1 convolution brings them to `width` if they differ.
        width: Size of the queries, and channels of the mask features.
        num_queries: Number of queries Q.
        num_heads: Heads of the attentions.
        num_layers: Number of layers; layer i reads level `i mod num_levels`.
        feed_forward: Hidden size of the perceptrons.
        num_levels: Number of multi-scale features.
    """

    def __init__(
        self,
        in_width: int = 256,
        width: int = 256,
        num_queries: int = 100,
        num_heads: int = 8,
        num_layers: int = 9,
        feed_forward: int = 2048,
        num_levels: int = 3,
    ) -> None:
        super().__init__()
        self.width = width
        self.query_features = nn.Parameter(torch.randn(num_queries, width))
        self.query_positions = nn.Parameter(torch.randn(num_queries, width))
        self.level_embedding = nn.Parameter(torch.randn(num_levels, width))
        self.source_projections = nn.ModuleList(
            nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1) for _ in range(num_levels)
        )
        for projection in self.source_projections:
            if isinstance(projection, nn.Conv2d):
                nn.init.kaiming_uniform_(projection.weight, a=1)
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(MaskedAttentionLayer(width, num_heads, feed_forward) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.mask_embedding = MLP(width, width, width, width)

    def forward(
        self, mask_features: Tensor, levels: Sequence[Tensor], auxiliary: bool = True
    ) -> list[tuple[Tensor, Tensor]]:
        """Predict masks before the first layer and after each one.

        Without the auxiliary predictions nobody reads the inner masks but the attention, at the size of a level:
        mask features are brought to each size once, in place of the masks of every layer. Both are linear.

        Args:
            mask_features: `(B, width, h, w)`.
            levels: Multi-scale features `(B, in_width, h_l, w_l)`, in the order in which the layers read them.
            auxiliary: Give all predictions, and not the last one alone.

        Returns:
            For each prediction the normalised queries `(B, Q, width)` and mask logits `(B, Q, h, w)`; the last
            one is the result, the others are for supervision.
        """
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        sources, positions = [], []
        for project, level, embedding in zip(self.source_projections, levels, self.level_embedding, strict=True):
            sources.append(project(level).flatten(2).transpose(1, 2) + embedding)
            positions.append(sine_positions(level.shape[2], level.shape[3], self.width, level.device))

        queries = self.query_features.repeat(mask_features.shape[0], 1, 1)
        predictions: list[tuple[Tensor, Tensor]] = []
        inner = [
            mask_features
            if auxiliary
            else functional.interpolate(mask_features, size, mode="bilinear", align_corners=False)
            for size in sizes
        ]
        for number, layer in enumerate(self.layers):
            index = number % len(levels)
            prediction = self.predict(queries, inner[index])
            attended = attended_cells(prediction[1], sizes[index])
            # A query whose mask is empty on this level looks everywhere.
            attended = attended | ~attended.any(dim=-1, keepdim=True)
            queries = layer(queries, self.query_positions, sources[index], positions[index], attended)
            predictions += [prediction] if auxiliary else []
        return [*predictions, self.predict(queries, mask_features)]

    def predict(self, queries: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries `(B, Q, width)` and their mask logits `(B, Q, h, w)`."""
        normalized = self.norm(queries)
        return normalized, torch.einsum("bqc,bchw->bqhw", self.mask_embedding(normalized), mask_features)


def attended_cells(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of a level that lie in the predicted masks.

    Args:
        mask_logits: `(B, Q, h, w)`.
        size: `(height, width)` of the level.

    Returns:
        bool `(B, Q, height * width)`, without gradient.
    """
    resized = functional.interpolate(mask_logits.detach(), size, mode="bilinear", align_corners=False)
    return resized.flatten(2) >= 0


def pool_by_masks(features: Tensor, mask_logits: Tensor) -> Tensor:
    """Mean of the features inside each predicted mask; zero for an empty mask.

    The gradient reaches the features, not the masks.

    Args:
        features: `(B, C, h, w)`.
        mask_logits: `(B, Q, h, w)`.

    Returns:
        `(B, Q, C)`.
    """
    masks = (mask_logits.detach() > 0).to(features.dtype)
    area = masks.sum(dim=(2, 3)).unsqueeze(2) + 1e-8
    return torch.einsum("bqhw,bchw->bqc", masks, features) / area
