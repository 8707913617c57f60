"""The side adapter network: masks and attention biases beside a frozen CLIP, recognition inside it.

The CLIP vision transformer is handed in at every call and never registered here. Its first blocks give features to
the side network; its last blocks classify the masks, see :mod:`ovsl.methods.san.recognition`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.errors import InputError
from ovsl.layers import MLP
from ovsl.methods.san.recognition import pool_biases, recognize, recognize_literally


class Level(NamedTuple):
    """What one supervised block of the side network predicts.

    Attributes:
        mask_embeddings: Unit vectors in CLIP's joint space, ``(B, Q, D)``.
        mask_logits: ``(B, Q, h, w)`` on the side network's patch grid.
    """

    mask_embeddings: Tensor
    mask_logits: Tensor


class Fusion(nn.Module):
    """Adds CLIP features to the patch tokens of the side network.

    Args:
        clip_width: Channels of the CLIP features.
        width: Channels of the side network.
    """

    def __init__(self, clip_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(clip_width, eps=1e-6)
        self.projection = nn.Linear(clip_width, width)
        # Caffe2's Xavier rule: U(-sqrt(3 / fan_in), sqrt(3 / fan_in)).
        nn.init.kaiming_uniform_(self.projection.weight, a=1)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self, tokens: Tensor, clip_patches: Tensor, clip_grid: tuple[int, int], grid: tuple[int, int]
    ) -> Tensor:
        """Fuse.

        Args:
            tokens: ``(B, Q + h*w, width)``, patches last.
            clip_patches: ``(B, clip_h*clip_w, clip_width)``.
            clip_grid: ``(clip_h, clip_w)``.
            grid: ``(h, w)``.
        """
        maps = self.projection(self.norm(clip_patches)).transpose(1, 2).unflatten(2, clip_grid)
        maps = functional.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
        num_queries = tokens.shape[1] - grid[0] * grid[1]
        return torch.cat([tokens[:, :num_queries], tokens[:, num_queries:] + maps.flatten(2).transpose(1, 2)], dim=1)


class SideNetwork(nn.Module):
    """A light vision transformer over queries and patches of the full-resolution image (section 3.2 of the paper).

    Args:
        clip_width: Channels of the CLIP features.
        width: Channels.
        depth: Number of blocks.
        num_heads: Attention heads.
        patch_size: Side of a patch in pixels; masks come out at this stride.
        image_size: Image side that the learned position grid is made for.
        num_queries: Q.
        fusion: CLIP features that enter, keyed by the place where they do: ``{side block: CLIP block}``; 0 stands
            before the first block.
        supervised_blocks: Blocks whose output is decoded, counted from 1.
    """

    def __init__(
        self,
        clip_width: int,
        width: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        image_size: int,
        num_queries: int,
        fusion: Mapping[int, int],
        supervised_blocks: Sequence[int],
    ) -> None:
        super().__init__()
        self.fusion = dict(fusion)
        self.supervised_blocks = tuple(supervised_blocks)
        self.learned_grid = (image_size // patch_size, image_size // patch_size)
        self.patch_embedding = nn.Conv2d(3, width, patch_size, patch_size)
        self.position_embedding = nn.Parameter(torch.empty(1, self.learned_grid[0] ** 2, width))
        self.query_embedding = nn.Parameter(torch.empty(1, num_queries, width))
        self.query_position_embedding = nn.Parameter(torch.empty(1, num_queries, width))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(depth)
        )
        self._initialize()
        self.fusions = nn.ModuleDict({str(place): Fusion(clip_width, width) for place in fusion})

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        nn.init.normal_(self.query_embedding, std=0.02)
        nn.init.normal_(self.query_position_embedding, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of a patch grid, ``(1, h*w, width)``."""
        # As published, only the number of patches is looked at: 32 x 50 patches take the rows of 40 x 40 as they are.
        if grid[0] * grid[1] == self.position_embedding.shape[1]:
            return self.position_embedding
        maps = self.position_embedding.transpose(1, 2).unflatten(2, self.learned_grid)
        maps = functional.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
        return maps.flatten(2).transpose(1, 2)

    def forward(
        self, images: Tensor, clip_features: Sequence[Tensor], clip_grid: tuple[int, int]
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """Run the blocks.

        Args:
            images: Normalised, padded ``(B, 3, H, W)``.
            clip_features: Patch tokens after CLIP's ``ln_pre`` (index 0) and after each shallow block,
                ``(B, clip_h*clip_w, clip_width)``.
            clip_grid: ``(clip_h, clip_w)``.

        Returns:
            Tokens ``(B, Q + h*w, width)`` of each supervised block, queries first, and the patch grid ``(h, w)``.
        """
        patches = self.patch_embedding(images)
        grid = (patches.shape[2], patches.shape[3])
        batch = len(images)
        positions = torch.cat([self.query_position_embedding, self.positions(grid)], dim=1)
        tokens = torch.cat([self.query_embedding.expand(batch, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self._fuse(0, tokens + positions, clip_features, clip_grid, grid)
        states = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = self._fuse(number, block(tokens), clip_features, clip_grid, grid)
            if number in self.supervised_blocks:
                states.append(tokens)
            tokens = tokens + positions
        return states, grid

    def _fuse(
        self,
        place: int,
        tokens: Tensor,
        clip_features: Sequence[Tensor],
        clip_grid: tuple[int, int],
        grid: tuple[int, int],
    ) -> Tensor:
        if place not in self.fusion:
            return tokens
        return self.fusions[str(place)](tokens, clip_features[self.fusion[place]], clip_grid, grid)


class MaskDecoder(nn.Module):
    """Turns a state of the side network into masks and attention biases.

    Args:
        width: Channels of the side network.
        hidden_width: Channels of the hidden layers of all three MLPs.
        embedding_width: Channels in which queries and pixels are compared.
        num_mlp_layers: Linear layers of each MLP.
        bias_heads: Bias maps for each query and layer: the heads of the CLIP, or 1 for all heads alike.
        bias_layers: Layers of bias maps: the deep blocks of the CLIP, or 1 for all blocks alike.
        rescale_bias: Whether a learned scalar factor and offset act on all biases.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        embedding_width: int,
        num_mlp_layers: int,
        bias_heads: int,
        bias_layers: int,
        rescale_bias: bool,
    ) -> None:
        super().__init__()
        self.bias_heads, self.bias_layers = bias_heads, bias_layers
        hidden = [width, *[hidden_width] * (num_mlp_layers - 1)]
        self.query_mlp = MLP(*hidden, embedding_width)
        self.pixel_mlp = MLP(*hidden, embedding_width)
        self.bias_mlp = MLP(*hidden, embedding_width * bias_heads * bias_layers)
        self.bias_scaling = nn.Linear(1, 1) if rescale_bias else None

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            tokens: ``(B, Q + h*w, width)``, queries first.
            grid: ``(h, w)``.

        Returns:
            ``mask_logits (B, Q, h, w)`` and attention biases ``(layers, B, heads, Q, h, w)``.
        """
        num_queries = tokens.shape[1] - grid[0] * grid[1]
        queries = self.query_mlp(tokens[:, :num_queries])
        pixels = tokens[:, num_queries:]
        mask_logits = torch.einsum("bqc,bnc->bqn", queries, self.pixel_mlp(pixels)).unflatten(2, grid)
        keys = self.bias_mlp(pixels).unflatten(2, (self.bias_layers, self.bias_heads, -1))
        biases = torch.einsum("bqc,bnlhc->lbhqn", queries, keys)
        if self.bias_scaling is not None:
            biases = biases * self.bias_scaling.weight.squeeze() + self.bias_scaling.bias
        return mask_logits, biases.unflatten(4, grid)


@dataclass
class SideAdapterSettings:
    """Sizes of the side adapter network; the defaults are those of the published ViT-B/16 model.

    Args:
        num_shallow_blocks: CLIP blocks that feed the side network; the others recognise.
        clip_scale: Size of CLIP's input relative to the side network's.
        fusion: CLIP features that enter the side network, keyed by the place where they do:
            ``{side block: CLIP block}``; 0 stands before the first block.
        supervised_blocks: Side blocks that are decoded in training, counted from 1; evaluation decodes the last.
        width: Channels of the side network.
        depth: Blocks of the side network.
        num_heads: Attention heads of the side network.
        patch_size: Patch side of the side network in pixels; masks come out at this stride.
        image_size: Image side that its learned position grid is made for.
        num_queries: Q, the number of masks.
        hidden_width: Channels of the hidden layers of the decoder's MLPs.
        embedding_width: Channels in which queries and pixels are compared.
        num_mlp_layers: Linear layers of each of the decoder's MLPs.
        bias_heads: Bias maps of a query: None for one for each CLIP head, 1 for one for all heads.
        bias_layers: 1 for the same biases in all deep blocks, or the number of deep blocks.
        rescale_bias: Whether a learned scalar factor and offset act on all biases.
        recognition: ``shared`` runs CLIP's own tokens once and computes no attention that is cut; ``literal`` is the
            published form with the same result.
    """

    num_shallow_blocks: int = 9
    clip_scale: float = 0.5
    fusion: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 3, 2: 6, 3: 9})
    supervised_blocks: tuple[int, ...] = (7, 8)
    width: int = 240
    depth: int = 8
    num_heads: int = 6
    patch_size: int = 16
    image_size: int = 640
    num_queries: int = 100
    hidden_width: int = 256
    embedding_width: int = 256
    num_mlp_layers: int = 3
    bias_heads: int | None = None
    bias_layers: int = 1
    rescale_bias: bool = True
    recognition: Literal["shared", "literal"] = "shared"


class SideAdapterNetwork(nn.Module):
    """Everything that SAN trains besides CLIP's position embedding and the no-object embedding.

    Args:
        tower: The image tower that will be handed in at every call; only its sizes are read.
        settings: Sizes.

    Raises:
        InputError: Numbers of blocks or heads that do not fit the CLIP.
    """

    def __init__(self, tower: ViTTower, settings: SideAdapterSettings) -> None:
        super().__init__()
        num_deep_blocks = tower.num_layers - settings.num_shallow_blocks
        if settings.num_shallow_blocks < 0 or num_deep_blocks < 1:
            raise InputError(
                f"num_shallow_blocks is {settings.num_shallow_blocks}, but the CLIP has {tower.num_layers} vision "
                "blocks and at least one of them has to recognise."
            )
        clip_heads = tower.num_heads
        bias_heads = clip_heads if settings.bias_heads is None else settings.bias_heads
        if bias_heads not in (1, clip_heads):
            raise InputError(f"bias_heads is {bias_heads}; give 1, or {clip_heads} for one for each CLIP head.")
        if settings.bias_layers not in (1, num_deep_blocks):
            raise InputError(
                f"bias_layers is {settings.bias_layers}; give 1, or {num_deep_blocks} for one for each deep CLIP block."
            )
        for place, feature in settings.fusion.items():
            if not (0 <= place <= settings.depth and 0 <= feature <= settings.num_shallow_blocks):
                raise InputError(
                    f"fusion {place}: {feature} is impossible; side blocks go to {settings.depth}, shallow CLIP "
                    f"blocks to {settings.num_shallow_blocks}."
                )
        if not settings.supervised_blocks or not all(1 <= n <= settings.depth for n in settings.supervised_blocks):
            raise InputError(
                f"supervised_blocks {list(settings.supervised_blocks)} have to lie in 1..{settings.depth}."
            )
        self.num_shallow_blocks = settings.num_shallow_blocks
        self.clip_scale = settings.clip_scale
        self.recognition = settings.recognition
        self.side_network = SideNetwork(
            tower.width,
            settings.width,
            settings.depth,
            settings.num_heads,
            settings.patch_size,
            settings.image_size,
            settings.num_queries,
            settings.fusion,
            settings.supervised_blocks,
        )
        self.mask_decoder = MaskDecoder(
            settings.width,
            settings.hidden_width,
            settings.embedding_width,
            settings.num_mlp_layers,
            bias_heads,
            settings.bias_layers,
            settings.rescale_bias,
        )

    def clip_input(self, images: Tensor) -> Tensor:
        """Shrink the images for CLIP: ``(B, 3, H, W)`` -> ``(B, 3, floor(H * scale), floor(W * scale))``."""
        # Sampled with the factor itself, not with the ratio of the rounded sizes, as published.
        return functional.interpolate(images, scale_factor=self.clip_scale, mode="bilinear", align_corners=False)

    def forward(self, tower: ViTTower, images: Tensor, all_levels: bool = False) -> list[Level]:
        """Predict masks and their embeddings.

        Args:
            tower: The image tower.
            images: Normalised, padded ``(B, 3, H, W)``.
            all_levels: Decode every supervised block, for training; otherwise only the last.

        Returns:
            The decoded levels, last one last.
        """
        shallow = islice(tower.intermediate_tokens(self.clip_input(images)), self.num_shallow_blocks + 1)
        features, (clip_grid, *_) = zip(*shallow, strict=True)
        states, grid = self.side_network(images, [tokens[:, 1:] for tokens in features], clip_grid)
        decoded = [self.mask_decoder(tokens, grid) for tokens in (states if all_levels else states[-1:])]
        biases = [pool_biases(biases, clip_grid) for _, biases in decoded]
        if self.recognition == "shared":
            joined = recognize(tower, features[-1], torch.cat(biases, dim=3), self.num_shallow_blocks)
            embeddings = list(joined.chunk(len(decoded), dim=1))
        else:
            embeddings = [recognize_literally(tower, features[-1], one, self.num_shallow_blocks) for one in biases]
        return [Level(embedding, masks) for embedding, (masks, _) in zip(embeddings, decoded, strict=True)]
