"""DenseCLIP's image encoders: pyramids, and those that also embed the image and its cells in CLIP's joint space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from timm.layers import DropPath
from torch import Tensor, nn

from ovsl.clip import ResNetTower, ViTTower
from ovsl.clip.blocks import run_block
from ovsl.clip.image_tower import Grid
from ovsl.errors import InputError
from ovsl.layers import Backbone, DenseAttentionPool, interpolate_positions


class Encoded(NamedTuple):
    """What an encoder with language gives.

    Attributes:
        levels: Maps `(B, C_i, h_i, w_i)`, fine to coarse.
        image: Embedding of the image in the joint space, `(B, D)`.
        cells: Embeddings of its cells, `(B, D, h, w)`.
    """

    levels: list[Tensor]
    image: Tensor
    cells: Tensor


class ResNetEncoder(nn.Module):
    """CLIP's ResNet; its attention pool is taken away.

    Args:
        tower: The image tower; it becomes part of this module and trains.
    """

    def __init__(self, tower: ResNetTower) -> None:
        super().__init__()
        self.tower = tower
        self.visual = tower.visual  # the module, whose name stands in checkpoints
        self.visual.attnpool = nn.Identity()
        self.channels = tower.stage_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` -> maps at strides 4, 8, 16, 32."""
        features = self.tower.stage_features(images)
        return [features[f"res{number}"] for number in range(2, 6)]


class BackboneEncoder(nn.Module):
    """Any timm backbone (the paper's "any backbone" experiments).

    Args:
        backbone: The pyramid.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.visual = backbone
        self.channels = backbone.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` -> maps at strides 4, 8, 16, 32."""
        levels: list[Tensor] = self.visual(images)
        return levels


class ViTEncoder(nn.Module):
    """CLIP's vision transformer with a pyramid made of four of its blocks' outputs.

    Args:
        tower: The image tower; it becomes part of this module and trains.
        grid: Side of the position grid, to which that of `tower` is resized once.
        out_indices: Blocks whose outputs are used, 0-based.
        drop_path: Largest rate of stochastic depth, reached linearly at the last block.
        repeat_class_embedding: Add the class embedding twice, as the official code does.
    """

    def __init__(
        self,
        tower: ViTTower,
        grid: int,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        drop_path: float = 0.1,
        repeat_class_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.visual = tower.visual  # the module, whose name stands in checkpoints
        positions = interpolate_positions(self.visual.positional_embedding.detach(), (grid, grid), "bilinear")
        self.visual.positional_embedding = nn.Parameter(positions.clone())
        width, blocks = tower.width, tower.num_layers
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

    def run(self, images: Tensor) -> tuple[list[Tensor], Tensor, Grid]:
        """Return maps at 1/4, 1/2, 1, 2 times the patch, the tokens after the last block, and their grid."""
        tokens, grid = self.tower.stem(images, "bilinear", self.repeat_class_embedding)
        outputs = {}
        for index, (block, drop_path) in enumerate(zip(self.tower.blocks, self.drop_paths, strict=True)):
            tokens = run_block(block, tokens, drop_path=drop_path)
            if index in self.out_indices:
                outputs[index] = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
        levels = [scale(outputs[index]) for scale, index in zip(self.scales, self.out_indices, strict=True)]
        return levels, tokens, grid

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` -> maps at 1/4, 1/2, 1, 2 times the patch."""
        return self.run(images)[0]


class LanguageResNetEncoder(ResNetEncoder):
    """CLIP's ResNet with attention pooling at every position of its last map.

    Args:
        tower: The image tower; it becomes part of this module and trains.
        grid: Side of the position grid of the pool, to which that of `tower` is resized once.
    """

    score_level = 3

    def __init__(self, tower: ResNetTower, grid: int) -> None:
        pool = tower.visual.attnpool
        super().__init__(tower)
        self.pool = DenseAttentionPool(self.channels[-1], pool.c_proj.out_features, pool.num_heads, grid)
        state = pool.state_dict()
        positions = interpolate_positions(state["positional_embedding"], (grid, grid), "bilinear")
        self.pool.load_state_dict({**state, "positional_embedding": positions})

    def embed(self, images: Tensor) -> Encoded:
        """Normalised images `(B, 3, H, W)` -> maps at strides 4, 8, 16, 32 and embeddings at 32."""
        levels = self(images)
        return Encoded(levels, *self.pool(levels[-1]))


class LanguageBackboneEncoder(BackboneEncoder):
    """Any timm backbone, with a randomly initialised attention pool at every position of its last map.

    Args:
        backbone: The pyramid.
        embedding_dimension: Size of the joint space.
        grid: Side of the position grid of the pool.
    """

    score_level = 3

    def __init__(self, backbone: Backbone, embedding_dimension: int, grid: int) -> None:
        super().__init__(backbone)
        channels = self.channels[-1]
        # 32 heads, or 8 where 32 does not divide the channels.
        self.pool = DenseAttentionPool(channels, embedding_dimension, 8 if channels % 32 else 32, grid)

    def embed(self, images: Tensor) -> Encoded:
        """Normalised images `(B, 3, H, W)` -> maps at strides 4, 8, 16, 32 and embeddings at 32."""
        levels = self(images)
        return Encoded(levels, *self.pool(levels[-1]))


class LanguageViTEncoder(ViTEncoder):
    """CLIP's vision transformer, whose own projection embeds the patches."""

    score_level = 2

    def embed(self, images: Tensor) -> Encoded:
        """Normalised images `(B, 3, H, W)` -> maps at 1/4, 1/2, 1, 2 times the patch, embeddings of patches."""
        levels, tokens, grid = self.run(images)
        embedded = self.tower.project(tokens)
        return Encoded(levels, embedded[:, 0], embedded[:, 1:].transpose(1, 2).unflatten(2, grid))


Encoder = ResNetEncoder | BackboneEncoder | ViTEncoder
LanguageEncoder = LanguageResNetEncoder | LanguageBackboneEncoder | LanguageViTEncoder
Source = Backbone | ResNetTower | ViTTower
"""What an encoder is made of."""


@dataclass(frozen=True)
class ViTOptions:
    """What is chosen for a vision transformer alone; see `ViTEncoder`.

    Args:
        out_indices: Blocks whose outputs are used, 0-based; None for those of 12 blocks.
        drop_path: Largest rate of stochastic depth.
        repeat_class_embedding: Add the class embedding twice.
    """

    out_indices: Sequence[int] | None = None
    drop_path: float = 0.1
    repeat_class_embedding: bool = True

    def indices(self, tower: ViTTower) -> Sequence[int]:
        """Return the four blocks that are used of a tower.

        Raises:
            InputError: Not four, or blocks that the tower does not have.
        """
        blocks = tower.num_layers
        chosen = self.out_indices or tuple(blocks * part // 12 - 1 for part in (4, 6, 8, 12))
        if len(chosen) != 4 or not all(0 <= index < blocks for index in chosen):
            raise InputError(f"out_indices is {list(chosen)}; give four block numbers from 0 to {blocks - 1}.")
        return chosen


def build_encoder(source: Source, image_size: int, vit: ViTOptions) -> Encoder:
    """Make an encoder for the plain Semantic FPN; what leads to the joint space is taken away.

    Args:
        source: timm backbone, or CLIP's image tower.
        image_size: Image side that the stored position grid stands for.
        vit: Options of a vision transformer.
    """
    if isinstance(source, Backbone):
        return BackboneEncoder(source)
    if isinstance(source, ResNetTower):
        return ResNetEncoder(source)
    source.visual.ln_post, source.visual.proj = nn.Identity(), None
    grid = image_size // source.patch_size
    return ViTEncoder(source, grid, vit.indices(source), vit.drop_path, vit.repeat_class_embedding)


def build_language_encoder(
    source: Source, embedding_dimension: int, image_size: int, vit: ViTOptions
) -> LanguageEncoder:
    """Make an encoder that also embeds the image and its cells in the joint space.

    Args:
        source: timm backbone, or CLIP's image tower.
        embedding_dimension: Size of the joint space.
        image_size: Image side that the stored position grid stands for.
        vit: Options of a vision transformer.
    """
    if isinstance(source, Backbone):
        return LanguageBackboneEncoder(source, embedding_dimension, image_size // 32)
    if isinstance(source, ResNetTower):
        return LanguageResNetEncoder(source, image_size // 32)
    grid = image_size // source.patch_size
    return LanguageViTEncoder(source, grid, vit.indices(source), vit.drop_path, vit.repeat_class_embedding)
