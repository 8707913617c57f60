"""CLIP's image towers, opened: the parts that dense methods need, under one typed surface for each kind of tower.

A tower is a view of open_clip's module, which stays where it is registered: it holds no parameters of its own, changes
none, and adds no names to a state dict. The kind is asked by `isinstance(tower, ViTTower)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from open_clip.modified_resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ovsl.clip.blocks import run_block, run_value_block
from ovsl.layers.attention import attend
from ovsl.layers.positions import PositionMode, interpolate_positions

Grid = tuple[int, int]
DenseMode = Literal["value", "attention"]


class ImageTower(ABC):
    """An image tower whose features can be read cell by cell.

    Args:
        visual: open_clip's module.
    """

    kind: ClassVar[str] = "an image tower that can be read cell by cell"
    examples: ClassVar[str] = "ViT-B-16, RN50, convnext_large_d_320 or the like"

    def __init__(self, visual: nn.Module) -> None:
        self.visual = visual

    @abstractmethod
    def dense_features(self, images: Tensor) -> Tensor:
        """Return features in the joint image-text space as MaskCLIP reads them (section 3.2).

        Args:
            images: Normalised `(B, 3, H, W)`.

        Returns:
            `(B, D, h, w)`, not normalised.
        """


class ViTTower(ImageTower):
    """CLIP's vision transformer: tokens are `(B, 1 + h*w, width)`, class token first.

    Args:
        visual: open_clip `VisionTransformer` with a class token and without attentional pooling.
    """

    kind = "a vision transformer and a class token"
    examples = "toy_vit, ViT-B-16 or the like"
    visual: VisionTransformer

    @property
    def blocks(self) -> Sequence[ResidualAttentionBlock]:
        """Blocks, first to last."""
        return list(self.visual.transformer.resblocks)

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return int(self.visual.conv1.out_channels)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.visual.conv1.kernel_size[0])

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.visual.transformer.resblocks)

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return int(self.visual.transformer.resblocks[0].attn.num_heads)

    @property
    def grid(self) -> Grid:
        """Grid of patches `(h, w)` that the position embeddings were made for."""
        height, width = self.visual.grid_size
        return int(height), int(width)

    def stem(
        self,
        images: Tensor,
        mode: PositionMode = "bicubic",
        repeat_class_embedding: bool = False,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        """Turn images into the tokens that enter the first block.

        Sides that the patch size does not divide lose their remainder, as in CLIP itself. Position embeddings are
        interpolated at every call and stay as they are.

        Args:
            images: Normalised `(B, 3, H, W)`.
            mode: Interpolation of the position embeddings.
            repeat_class_embedding: Add the class embedding twice, as the code of ZegCLIP and DenseCLIP does.
            positions: Position embeddings `(1 + h*w, width)` in place of the interpolated ones.

        Returns:
            Tokens after `ln_pre`, and the grid `(h, w)`.
        """
        patches = self.visual.conv1(images)
        grid = (patches.shape[2], patches.shape[3])
        class_token = self.visual.class_embedding * (2 if repeat_class_embedding else 1)
        tokens = torch.cat([class_token.expand(len(patches), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        if positions is None:
            positions = interpolate_positions(self.visual.positional_embedding, grid, mode)
        return self.visual.ln_pre(tokens + positions), grid

    def intermediate_tokens(
        self, images: Tensor, run: Callable[[ResidualAttentionBlock, Tensor], Tensor] = run_block
    ) -> Iterator[tuple[Tensor, Grid]]:
        """Yield the tokens after `ln_pre` and after every block, in order, with the grid `(h, w)`.

        Args:
            images: Normalised `(B, 3, H, W)`.
            run: Runs a block.
        """
        tokens, grid = self.stem(images)
        yield tokens, grid
        for block in self.blocks:
            tokens = run(block, tokens)
            yield tokens, grid

    def project(self, tokens: Tensor) -> Tensor:
        """Bring tokens of the last block into the joint space: `(B, N, width)` -> `(B, N, D)`, not normalised."""
        return self.visual.ln_post(tokens) @ self.visual.proj

    def project_patches(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Bring the patches into the joint space: `(B, 1 + h*w, width)` -> `(B, D, h, w)`, not normalised."""
        return self.project(tokens[:, 1:]).transpose(1, 2).unflatten(2, grid)

    def dense_features(self, images: Tensor, mode: DenseMode = "value") -> Tensor:
        """Return patch features in the joint image-text space.

        Args:
            images: Normalised `(B, 3, H, W)`.
            mode: `value` replaces the attention of the last block by its values (MaskCLIP); `attention` leaves the
                tower as it is.

        Returns:
            `(B, D, h, w)`, not normalised.
        """
        tokens, grid = self.stem(images)
        *first, last = self.blocks
        for block in first:
            tokens = run_block(block, tokens)
        tokens = run_value_block(last, tokens) if mode == "value" else run_block(last, tokens)
        return self.project_patches(tokens, grid)


class ConvTower(ImageTower):
    """A convolutional tower of CLIP: four stages at strides 4, 8, 16 and 32."""

    kind = "a convolutional image tower"
    examples = "toy_convnext, convnext_large_d_320, RN50 or the like"

    @property
    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """The four stages."""

    @property
    @abstractmethod
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of `res2` .. `res5`."""

    @abstractmethod
    def stage_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the stages.

        Args:
            images: Normalised `(B, 3, H, W)`.

        Returns:
            `stem` and `res2` .. `res5` at strides 4, 8, 16, 32 (`stem`: 4 for ConvNeXt, 2 for ResNet), raw stage
            outputs without norm or projection.
        """

    @abstractmethod
    def project_map(self, features: Tensor) -> Tensor:
        """Bring `res5` into the joint space cell by cell: `(B, channels, h, w)` -> `(B, D, h, w)`, not normalised."""

    @abstractmethod
    def embed_masks(self, features: Tensor, masks: Tensor) -> Tensor:
        """Embed the regions of an image in the joint space with the tower's own pooling (FC-CLIP, section 3.3).

        An empty mask gives what the projection makes of a zero vector: finite, and meaningless.

        Args:
            features: `res5`, `(B, channels, h, w)`.
            masks: bool `(B, Q, h, w)`.

        Returns:
            `(B, Q, D)`, not normalised.
        """

    def dense_features(self, images: Tensor) -> Tensor:
        """Return the projected last map, `(B, D, H/32, W/32)`, not normalised."""
        return self.project_map(self.stage_features(images)["res5"])


class ConvNeXtTower(ConvTower):
    """CLIP's ConvNeXt; cells go through the head norm and CLIP's projection.

    Args:
        visual: open_clip `TimmModel` around a timm `ConvNeXt`.
    """

    visual: TimmModel

    @property
    def stages(self) -> list[nn.Module]:
        """See `ConvTower`."""
        return list(self.visual.trunk.stages)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `ConvTower`."""
        return tuple(info["num_chs"] for info in self.visual.trunk.feature_info)

    def stage_features(self, images: Tensor) -> dict[str, Tensor]:
        """See `ConvTower`."""
        features = {"stem": self.visual.trunk.stem(images)}
        out = features["stem"]
        for number, stage in enumerate(self.stages, start=2):
            features[f"res{number}"] = out = stage(out)
        return features

    def pool(self, features: Tensor) -> Tensor:
        """Return the embedding of whole images, the mean of `res5` projected: `(B, D)`."""
        return self.visual.head(self.visual.trunk.forward_head(features))

    def project_map(self, features: Tensor) -> Tensor:
        """See `ConvTower`."""
        cells = self.visual.trunk.norm_pre(features.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None])
        return self.pool(cells).unflatten(0, (features.shape[0], *features.shape[2:])).permute(0, 3, 1, 2)

    def embed_masks(self, features: Tensor, masks: Tensor) -> Tensor:
        """See `ConvTower`; the mean of the cells inside a mask is projected."""
        weights = masks.to(features.dtype)
        pooled = torch.einsum("bqhw,bchw->bqc", weights, features) / (weights.sum(dim=(2, 3)).unsqueeze(2) + 1e-8)
        return self.pool(pooled.flatten(0, 1)[..., None, None]).unflatten(0, masks.shape[:2])


class ResNetTower(ConvTower):
    """CLIP's ResNet, which ends in attention pooling.

    Args:
        visual: open_clip `ModifiedResNet`.
    """

    visual: ModifiedResNet

    @property
    def stages(self) -> list[nn.Module]:
        """See `ConvTower`."""
        return [self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `ConvTower`."""
        last: list[Bottleneck] = [stage[-1] for stage in self.stages]  # type: ignore[index]
        return tuple(block.conv3.out_channels for block in last)

    def stage_features(self, images: Tensor) -> dict[str, Tensor]:
        """See `ConvTower`."""
        visual = self.visual
        out = visual.act1(visual.bn1(visual.conv1(images)))
        out = visual.act2(visual.bn2(visual.conv2(out)))
        features = {"stem": visual.act3(visual.bn3(visual.conv3(out)))}
        out = visual.avgpool(features["stem"])
        for number, stage in enumerate(self.stages, start=2):
            features[f"res{number}"] = out = stage(out)
        return features

    def project_map(self, features: Tensor) -> Tensor:
        """See `ConvTower`; value and output projection of the pool as 1x1 convolutions (MaskCLIP, section 3.2)."""
        pool = self.visual.attnpool
        return pool.c_proj(pool.v_proj(features.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def embed_masks(self, features: Tensor, masks: Tensor) -> Tensor:
        """See `ConvTower`; the query is the mean of the whole map, the keys are the cells inside a mask."""
        pool: AttentionPool2d = self.visual.attnpool
        grid = (features.shape[2], features.shape[3])
        positions = interpolate_positions(pool.positional_embedding, grid, "bilinear")
        cells = features.flatten(2).transpose(1, 2) + positions[1:]
        query = features.mean(dim=(2, 3)).unsqueeze(1) + positions[0]
        inside = masks.flatten(2)
        filled = inside.any(dim=2, keepdim=True)
        mixed = attend(
            pool.q_proj(query).expand(-1, masks.shape[1], -1),
            pool.k_proj(cells),
            pool.v_proj(cells),
            pool.num_heads,
            # A row without a single key is NaN on some backends; it attends everywhere and is dropped afterwards.
            (inside | ~filled)[:, None],
        )
        return pool.c_proj(mixed.where(filled, 0))


def open_tower(visual: nn.Module) -> ImageTower | None:
    """Return the view of an open_clip image tower, or None for a kind that nobody has opened yet."""
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return ViTTower(visual)
    if isinstance(visual, ModifiedResNet):
        return ResNetTower(visual)
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, ConvNeXt):
        return ConvNeXtTower(visual)
    return None
