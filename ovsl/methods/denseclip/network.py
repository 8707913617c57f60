"""The DenseCLIP network: image encoders, learned contexts, and the language-guided Semantic FPN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ovsl.clip import ResNetTower, ViTTower
from ovsl.clip.image_tower import run_block
from ovsl.layers import (
    Backbone,
    ContextDecoder,
    DenseAttentionPool,
    FeaturePyramid,
    SemanticFPNHead,
    interpolate_positions,
    score_map,
)


@dataclass(frozen=True)
class Encoded:
    """What an image encoder gives.

    Attributes:
        levels: Maps ``(B, C_i, h_i, w_i)``, fine to coarse.
        image: Embedding of the image in the joint space, ``(B, D)``; None without language.
        cells: Embeddings of its cells, ``(B, D, h, w)``; None without language.
    """

    levels: list[Tensor]
    image: Tensor | None = None
    cells: Tensor | None = None


class ResNetEncoder(nn.Module):
    """CLIP's ResNet with attention pooling at every position of its last map.

    Args:
        tower: The image tower; it becomes part of this module and trains.
        grid: Side of the position grid of the pool, to which that of ``tower`` is resized once.
        with_language: Whether cells are embedded in the joint space.
    """

    score_level = 3

    def __init__(self, tower: ResNetTower, grid: int, with_language: bool = True) -> None:
        super().__init__()
        self.tower = tower
        self.visual = tower.visual  # the module, whose name stands in checkpoints
        pool, self.visual.attnpool = self.visual.attnpool, nn.Identity()
        self.channels = tower.stage_channels
        self.pool: DenseAttentionPool | None = None
        if with_language:
            self.pool = DenseAttentionPool(self.channels[-1], pool.c_proj.out_features, pool.num_heads, grid)
            state = pool.state_dict()
            positions = interpolate_positions(state["positional_embedding"], (grid, grid), "bilinear")
            self.pool.load_state_dict({**state, "positional_embedding": positions})

    def forward(self, images: Tensor) -> Encoded:
        """Normalised images ``(B, 3, H, W)`` -> maps at strides 4, 8, 16, 32 and embeddings at 32."""
        features = self.tower.stage_features(images)
        levels = [features[f"res{number}"] for number in range(2, 6)]
        return Encoded(levels) if self.pool is None else Encoded(levels, *self.pool(levels[-1]))


class ViTEncoder(nn.Module):
    """CLIP's vision transformer with a pyramid made of four of its blocks' outputs.

    Args:
        tower: The image tower; it becomes part of this module and trains.
        grid: Side of the position grid, to which that of ``tower`` is resized once.
        with_language: Whether patches are embedded in the joint space.
        out_indices: Blocks whose outputs are used, 0-based.
        drop_path: Largest rate of stochastic depth, reached linearly at the last block.
        repeat_class_embedding: Add the class embedding twice, as the official code does.
    """

    score_level = 2

    def __init__(
        self,
        tower: ViTTower,
        grid: int,
        with_language: bool = True,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        drop_path: float = 0.1,
        repeat_class_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.visual = tower.visual  # the module, whose name stands in checkpoints
        positions = interpolate_positions(self.visual.positional_embedding.detach(), (grid, grid), "bilinear")
        self.visual.positional_embedding = nn.Parameter(positions.clone())
        if not with_language:
            self.visual.ln_post, self.visual.proj = nn.Identity(), None
        width, blocks = tower.width, tower.num_layers
        self.with_language = with_language
        self.out_indices = tuple(out_indices)
        self.repeat_class_embedding = repeat_class_embedding
        self.channels = (width,) * 4
        self.drop_paths = nn.ModuleList(DropPath(drop_path * index / max(blocks - 1, 1)) for index in range(blocks))
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.GroupNorm(1, width),
                    nn.ConvTranspose2d(width, width, 2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, stride=2),
                ),
                nn.Sequential(nn.GroupNorm(1, width), nn.ConvTranspose2d(width, width, 2, stride=2)),
                nn.GroupNorm(1, width),
                nn.Sequential(nn.GroupNorm(1, width), nn.MaxPool2d(2)),
            ]
        )

    def forward(self, images: Tensor) -> Encoded:
        """Normalised images ``(B, 3, H, W)`` -> maps at 1/4, 1/2, 1, 2 times the patch, embeddings of patches."""
        tokens, grid = self.tower.stem(images, "bilinear", self.repeat_class_embedding)
        outputs = {}
        for index, (block, drop_path) in enumerate(zip(self.tower.blocks, self.drop_paths, strict=True)):
            tokens = run_block(block, tokens, drop_path=drop_path)
            if index in self.out_indices:
                outputs[index] = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
        levels = [scale(outputs[index]) for scale, index in zip(self.scales, self.out_indices, strict=True)]
        if not self.with_language:
            return Encoded(levels)
        embedded = self.tower.project(tokens)
        return Encoded(levels, embedded[:, 0], embedded[:, 1:].transpose(1, 2).unflatten(2, grid))


class BackboneEncoder(nn.Module):
    """Any timm backbone, with a randomly initialised attention pool (the paper's "any backbone" experiments).

    Args:
        backbone: The pyramid.
        embedding_dim: Size of the joint space.
        grid: Side of the position grid of the pool.
        with_language: Whether cells are embedded in the joint space.
    """

    score_level = 3

    def __init__(self, backbone: Backbone, embedding_dim: int, grid: int, with_language: bool = True) -> None:
        super().__init__()
        self.visual = backbone
        self.channels = backbone.channels
        self.pool = dense_pool(self.channels[-1], embedding_dim, grid) if with_language else None

    def forward(self, images: Tensor) -> Encoded:
        """Normalised images ``(B, 3, H, W)`` -> maps at strides 4, 8, 16, 32 and embeddings at 32."""
        levels = self.visual(images)
        return Encoded(levels) if self.pool is None else Encoded(levels, *self.pool(levels[-1]))


def dense_pool(channels: int, embedding_dim: int, grid: int) -> DenseAttentionPool:
    """Attention pool of a backbone that CLIP has never seen: 32 heads, or 8 where 32 does not divide the channels."""
    return DenseAttentionPool(channels, embedding_dim, 8 if channels % 32 else 32, grid)


@dataclass(frozen=True)
class DenseCLIPOutput:
    """What the network gives.

    Attributes:
        logits: At the finest level, ``(B, num_classes, h, w)``; None for a vocabulary that the head does not know.
        score_map: Cosines ``(B, K, h', w')``; None without language.
        text: Text embeddings of each image ``(B, K, D)``, not normalised; None without language.
    """

    logits: Tensor | None
    score_map: Tensor | None = None
    text: Tensor | None = None


class DenseCLIPNetwork(nn.Module):
    """Pixel-text score maps from context-aware texts, concatenated to one level of a Semantic FPN.

    Args:
        encoder: Image encoder.
        num_classes: Classes of the head.
        embedding_dim: Size of the joint space; None for the Semantic FPN without language.
        context_decoder: Decoder that adapts the texts to the image; None without language.
        fpn_width: Channels of the pyramid.
        head_width: Channels of the head.
        head_dropout: Dropout of the head.
        gamma: Initial weight of what the image adds to the texts.
    """

    def __init__(
        self,
        encoder: ResNetEncoder | ViTEncoder | BackboneEncoder,
        num_classes: int,
        embedding_dim: int | None,
        context_decoder: ContextDecoder | None,
        fpn_width: int = 256,
        head_width: int = 256,
        head_dropout: float = 0.1,
        gamma: float = 1e-4,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = encoder
        self.context_decoder = context_decoder
        channels = list(encoder.channels)
        if embedding_dim is not None:
            self.gamma = nn.Parameter(torch.full((embedding_dim,), gamma))
            channels[encoder.score_level] += num_classes
        self.neck = FeaturePyramid(channels, fpn_width)
        self.head = SemanticFPNHead(fpn_width, head_width, num_classes, dropout=head_dropout)

    def prompt(self, encoded: Encoded, text: Tensor) -> Tensor:
        """Texts ``(K, D)`` adapted to each image, ``(B, K, D)``: post-model prompting (eq. 5)."""
        assert encoded.image is not None
        assert encoded.cells is not None
        assert self.context_decoder is not None
        visual = torch.cat([encoded.image.unsqueeze(1), encoded.cells.flatten(2).transpose(1, 2)], dim=1)
        text = text.expand(len(visual), -1, -1)
        return text + self.gamma * self.context_decoder(text, visual)

    def forward(self, images: Tensor, text: Tensor | None, with_head: bool = True) -> DenseCLIPOutput:
        """Segment normalised images.

        Args:
            images: ``(B, 3, H, W)``.
            text: Text embeddings ``(K, D)``, any length; None for the Semantic FPN without language.
            with_head: Run the head, which needs K to be ``num_classes``.
        """
        encoded: Encoded = self.encoder(images)
        levels, scores = list(encoded.levels), None
        if self.context_decoder is not None:
            assert text is not None
            assert encoded.cells is not None
            text = self.prompt(encoded, text)
            scores = score_map(encoded.cells, text)
            level = self.encoder.score_level
            levels[level] = torch.cat([levels[level], scores.to(levels[level].dtype)], dim=1)
        logits = self.head(self.neck(levels)) if with_head else None
        return DenseCLIPOutput(logits, scores, text)
