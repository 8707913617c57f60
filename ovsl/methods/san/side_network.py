"""The parts of SAN beside the CLIP: the side network, and what turns its states into masks and attention biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from ovsl.layers import MLP, recompute


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
            tokens: `(B, Q + h*w, width)`, patches last.
            clip_patches: `(B, clip_h*clip_w, clip_width)`.
            clip_grid: `(clip_h, clip_w)`.
            grid: `(h, w)`.
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
        num_layers: Number of blocks.
        num_heads: Attention heads.
        patch_size: Side of a patch in pixels; masks come out at this stride.
        image_size: Image side that the learned position grid is made for.
        num_queries: Q.
        fusion: CLIP features that enter, keyed by the place where they do: `{side block: CLIP block}`; 0 stands
            before the first block.
        supervised_blocks: Blocks whose output is decoded, counted from 1.
        checkpoint_activations: Keep only the inputs of blocks in training and compute the rest twice.
    """

    def __init__(
        self,
        clip_width: int,
        width: int,
        num_layers: int,
        num_heads: int,
        patch_size: int,
        image_size: int,
        num_queries: int,
        fusion: Mapping[int, int],
        supervised_blocks: Sequence[int],
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.fusion = dict(fusion)
        self.supervised_blocks = tuple(supervised_blocks)
        self.checkpoint_activations = checkpoint_activations
        self.learned_grid = (image_size // patch_size, image_size // patch_size)
        self.patch_embedding = nn.Conv2d(3, width, patch_size, patch_size)
        self.position_embedding = nn.Parameter(torch.empty(1, self.learned_grid[0] ** 2, width))
        self.query_embedding = nn.Parameter(torch.empty(1, num_queries, width))
        self.query_position_embedding = nn.Parameter(torch.empty(1, num_queries, width))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(num_layers)
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
        """Position embeddings of a patch grid, `(1, h*w, width)`."""
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
            images: Normalised, padded `(B, 3, H, W)`.
            clip_features: Patch tokens after CLIP's `ln_pre` (index 0) and after each shallow block,
                `(B, clip_h*clip_w, clip_width)`.
            clip_grid: `(clip_h, clip_w)`.

        Returns:
            Tokens `(B, Q + h*w, width)` of each supervised block, queries first, and the patch grid `(h, w)`.
        """
        patches = self.patch_embedding(images)
        grid = (patches.shape[2], patches.shape[3])
        batch = len(images)
        positions = torch.cat([self.query_position_embedding, self.positions(grid)], dim=1)
        tokens = torch.cat([self.query_embedding.expand(batch, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self._fuse(0, tokens + positions, clip_features, clip_grid, grid)
        states = []
        again = self.checkpoint_activations and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks, start=1):
            tokens = recompute(block, tokens) if again else block(tokens)
            tokens = self._fuse(number, tokens, clip_features, clip_grid, grid)
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
        embedding_dimension: Channels in which queries and pixels are compared.
        num_mlp_layers: Linear layers of each MLP.
        bias_heads: Bias maps for each query and layer: the heads of the CLIP, or 1 for all heads alike.
        bias_layers: Layers of bias maps: the deep blocks of the CLIP, or 1 for all blocks alike.
        rescale_bias: Whether a learned scalar factor and offset act on all biases.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        embedding_dimension: int,
        num_mlp_layers: int,
        bias_heads: int,
        bias_layers: int,
        rescale_bias: bool,
    ) -> None:
        super().__init__()
        self.bias_heads, self.bias_layers = bias_heads, bias_layers
        hidden = [width, *[hidden_width] * (num_mlp_layers - 1)]
        self.query_mlp = MLP(*hidden, embedding_dimension)
        self.pixel_mlp = MLP(*hidden, embedding_dimension)
        self.bias_mlp = MLP(*hidden, embedding_dimension * bias_heads * bias_layers)
        self.bias_scaling = nn.Linear(1, 1) if rescale_bias else None

    def forward(self, tokens: Tensor, grid: tuple[int, int], literal: bool = False) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            tokens: `(B, Q + h*w, width)`, queries first.
            grid: `(h, w)`.
            literal: Compute the biases as published, see `literal_biases`.

        Returns:
            `mask_logits (B, Q, h, w)` and attention biases `(layers, B, heads, Q, h, w)`.
        """
        num_queries = tokens.shape[1] - grid[0] * grid[1]
        queries = self.query_mlp(tokens[:, :num_queries])
        pixels = tokens[:, num_queries:]
        mask_logits = torch.einsum("bqc,bnc->bqn", queries, self.pixel_mlp(pixels)).unflatten(2, grid)
        biases = (self.literal_biases if literal else self.folded_biases)(queries, pixels)
        return mask_logits, biases.unflatten(4, grid)

    def folded_biases(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Compare queries with pixels, the last layer of the bias MLP applied to the queries.

        That layer is linear, so it may stand on either side of the product; pixels are many more than queries.

        Args:
            queries: `(B, Q, embedding_dimension)`.
            pixels: `(B, N, width)`.

        Returns:
            `(layers, B, heads, Q, N)`.
        """
        *layers, last = self.bias_mlp
        assert isinstance(last, nn.Linear)
        for layer in layers:
            pixels = layer(pixels)
        maps = (self.bias_layers, self.bias_heads, -1)
        folded = torch.einsum("bqc,lhck->blhqk", queries, last.weight.unflatten(0, maps))
        offsets = torch.einsum("bqc,lhc->blhq", queries, last.bias.unflatten(0, maps))
        if self.bias_scaling is not None:
            scale = self.bias_scaling.weight.squeeze()
            folded, offsets = folded * scale, offsets * scale + self.bias_scaling.bias
        biases = torch.baddbmm(offsets.flatten(1).unsqueeze(2), folded.flatten(1, 3), pixels.transpose(1, 2))
        return biases.unflatten(1, offsets.shape[1:]).transpose(0, 1)

    def literal_biases(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Do the same as published: every pixel has an embedding for each layer and head.

        Kept as the reference that `folded_biases` is compared with, and for counting operations as the paper does.
        """
        keys = self.bias_mlp(pixels).unflatten(2, (self.bias_layers, self.bias_heads, -1))
        biases = torch.einsum("bqc,bnlhc->lbhqn", queries, keys)
        if self.bias_scaling is not None:
            biases = biases * self.bias_scaling.weight.squeeze() + self.bias_scaling.bias
        return biases
