"""The network of ZegCLIP: a CLIP vision transformer with visual prompts, and a decoder whose attention is the mask.

The CLIP image tower is read through a view of it, and is not a part of the module tree here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.clip.blocks import block_runner
from ovsl.errors import InputError
from ovsl.layers import PositionMode, attend


@dataclass(frozen=True)
class ZegCLIPSizes:
    """Sizes of what ZegCLIP trains; the defaults are those of the published model for VOC.

    Args:
        num_prompts: Prompt tokens in a block: 10 for VOC, 100 for COCO-Stuff; 0 for none.
        deep_prompt_layers: Blocks after the first with prompts of their own; None for all, 0 for shallow prompts,
            negative for the last blocks only.
        num_layers: Layers of the decoder.
        num_heads: Attention heads of the decoder.
        feed_forward: Hidden width of the decoder's feed-forward networks.
    """

    num_prompts: int = 10
    deep_prompt_layers: int | None = None
    num_layers: int = 3
    num_heads: int = 8
    feed_forward: int = 2048


class ZegCLIPOutput(NamedTuple):
    """What the network gives.

    Attributes:
        mask_logits: One mask for each text, on the patch grid, `(B, C, h, w)`.
    """

    mask_logits: Tensor


class PromptedEncoder(nn.Module):
    """CLIP's vision transformer with learned prompt tokens between the class token and the patches (section 3.2).

    Every prompt goes through one shared projection. Deep prompts replace the outputs of the prompts of the block
    before; they follow `ln_pre` and have no position embedding.

    Args:
        tower: The image tower, W its width.
        num_prompts: Number of prompt tokens M in a block; 0 leaves the tower as it is.
        deep_layers: Blocks after the first that get prompts of their own. 0: the prompts of the first block flow
            through all others (shallow). Negative: prompts in the last `-deep_layers` blocks only.
        dropout: Dropout of the projected prompts.
        repeat_class_embedding: Add the class embedding twice, as the official code does; its prompts were trained
            with it.
        position_mode: Interpolation of the position embeddings.
        checkpoint_activations: Keep only the inputs of CLIP's blocks in training and compute the rest twice.
    """

    def __init__(
        self,
        tower: ViTTower,
        num_prompts: int = 10,
        deep_layers: int = 11,
        dropout: float = 0.1,
        repeat_class_embedding: bool = True,
        position_mode: PositionMode = "bilinear",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.num_prompts = num_prompts
        self.deep_layers = deep_layers
        self.first_block = max(tower.num_layers + deep_layers, 0) if deep_layers < 0 else 0
        self.repeat_class_embedding = repeat_class_embedding
        self.position_mode: PositionMode = position_mode
        self.checkpoint_activations = checkpoint_activations
        if num_prompts == 0:
            return
        width = tower.width
        bound = math.sqrt(6 / (3 * tower.patch_size**2 + width))
        if deep_layers >= 0:
            self.prompt_embeddings = nn.Parameter(torch.empty(1, num_prompts, width).uniform_(-bound, bound))
        if deep_layers != 0:
            deep = torch.empty(abs(deep_layers), num_prompts, width).uniform_(-bound, bound)
            self.deep_prompt_embeddings = nn.Parameter(deep)
            self.prompt_norm = nn.LayerNorm(width, eps=1e-6)
        self.prompt_proj = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.prompt_proj.weight, mode="fan_out")
        self.prompt_dropout = nn.Dropout(dropout)

    @property
    def has_prompt_norm(self) -> bool:
        """Whether the tokens of the last block are normed once more; only with deep prompts."""
        return self.num_prompts > 0 and self.deep_layers != 0

    def prompts(self) -> Tensor:
        """Projected prompts `(P, M, W)`, one entry for each of the P blocks that gets new ones."""
        first = [self.prompt_embeddings] if self.deep_layers >= 0 else []
        deep = [self.deep_prompt_embeddings] if self.deep_layers != 0 else []
        return self.prompt_proj(torch.cat([*first, *deep]))

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens that enter the first block, prompts left out; see `ovsl.clip.ViTTower.stem`."""
        return self.tower.stem(images, self.position_mode, self.repeat_class_embedding)

    def intermediate_tokens(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the tokens after every block: class, prompts (where the block has them), patches.

        Args:
            tokens: Output of `embed`.
        """
        batch, num_patches = tokens.shape[0], tokens.shape[1] - 1
        # Dropout is drawn for each image, so it comes after the expansion over the batch.
        prompts = self.prompt_dropout(self.prompts()[:, None].expand(-1, batch, -1, -1)) if self.num_prompts else ()
        run = block_runner(self.checkpoint_activations)
        for index, block in enumerate(self.tower.blocks):
            row = index - self.first_block
            if 0 <= row < len(prompts):
                tokens = torch.cat([tokens[:, :1], prompts[row], tokens[:, -num_patches:]], dim=1)
            elif row == len(prompts) and self.deep_layers != 0:
                tokens = torch.cat([tokens[:, :1], tokens[:, -num_patches:]], dim=1)
            tokens = run(block, tokens)
            yield tokens

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Bring the tokens of the last block to the joint space.

        Returns:
            Unit patch embeddings `(B, D, h, w)` and unit image embeddings `(B, D)`.
        """
        if self.has_prompt_norm:
            tokens = self.prompt_norm(tokens)
        embeddings = self.tower.project(tokens)
        embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
        patches = embeddings[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        return patches, embeddings[:, 0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: Normalised `(B, 3, H, W)`.

        Returns:
            Unit patch embeddings `(B, D, h, w)` and unit image embeddings `(B, D)`.
        """
        embedded, grid = self.embed(images)
        for tokens in self.intermediate_tokens(embedded):
            last = tokens
        return self.project(last, grid)


class CrossAttention(nn.Module):
    """The four projections of multi-head cross-attention under the names of the official release."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)


class AttentionToMaskLayer(nn.Module):
    """A decoder layer whose attention logits, averaged over heads, are masks (SegViT's attention-to-mask).

    Post-norm, with no self-attention between queries. `self_attn` and `norm1` are never used: the official layer
    inherits them, and its checkpoints and the published parameter count hold them.

    Args:
        width: Width D.
        num_heads: Attention heads.
        feed_forward: Hidden width of the feed-forward network.
        dropout: Dropout of attention weights, residual branches and the hidden layer.
    """

    unused = ("self_attn", "norm1")
    unused_in_last = ("multihead_attn.v", "multihead_attn.proj", "linear1", "linear2", "norm2", "norm3")

    def __init__(self, width: int, num_heads: int = 8, feed_forward: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.multihead_attn = CrossAttention(width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.self_attn = nn.MultiheadAttention(width, num_heads)
        self.norm1 = nn.LayerNorm(width)

    def mask_logits(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Attention logits before the softmax, mean over heads.

        Args:
            queries: `(B, C, D)`.
            memory: Patch embeddings `(B, N, D)`.

        Returns:
            `(B, C, N)`.
        """
        query, key = self.multihead_attn.q(queries), self.multihead_attn.k(memory)
        # The mean of the heads' dot products is the dot product over all channels, divided by the number of heads.
        scale = 1 / (self.num_heads * math.sqrt(query.shape[-1] // self.num_heads))
        return scale * query @ key.transpose(1, 2)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Update the queries; shapes as in `mask_logits`, returns `(B, C, D)`."""
        attention = self.multihead_attn
        projected = attention.q(queries), attention.k(memory), attention.v(memory)
        mixed = attend(*projected, num_heads=self.num_heads, dropout=self.dropout.p if self.training else 0.0)
        queries = self.norm2(queries + self.dropout(attention.proj(mixed)))
        hidden = self.dropout(functional.relu(self.linear1(queries)))
        return self.norm3(queries + self.dropout(self.linear2(hidden)))


class AttentionToMaskDecoder(nn.Module):
    """Class queries to class masks (sections 3.1 and 3.4).

    Args:
        width: Size D of the joint image-text space.
        num_layers: Decoder layers; the attention logits of the last one are the masks.
        num_heads: Attention heads.
        feed_forward: Hidden width of the feed-forward networks.
        dropout: See `AttentionToMaskLayer`.
        relationship_descriptor: Query with `[text * image, text]` (section 3.4, equation 7) and not with the text
            alone.
    """

    def __init__(
        self,
        width: int,
        num_layers: int = 3,
        num_heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        relationship_descriptor: bool = True,
    ) -> None:
        super().__init__()
        self.relationship_descriptor = relationship_descriptor
        self.q_proj = nn.Linear(2 * width if relationship_descriptor else width, width)
        # The official layers start as copies of one another, with PyTorch's own initial values.
        layer = AttentionToMaskLayer(width, num_heads, feed_forward, dropout)
        self.layers = nn.ModuleList(deepcopy(layer) for _ in range(num_layers))

    def descriptors(self, text: Tensor, image_embeddings: Tensor) -> Tensor:
        """Compute what the queries are made of.

        Args:
            text: Unit text embeddings `(C, D)`.
            image_embeddings: Unit image embeddings `(B, D)`.

        Returns:
            `(B, C, 2D)` with the relationship descriptor, `(B, C, D)` without.
        """
        classes = text.expand(image_embeddings.shape[0], -1, -1)
        if not self.relationship_descriptor:
            return classes
        return torch.cat([text * image_embeddings[:, None], classes], dim=-1)

    def forward(self, text: Tensor, patches: Tensor, image_embeddings: Tensor) -> Tensor:
        """Mask logits on the patch grid.

        Args:
            text: Unit text embeddings `(C, D)`.
            patches: Unit patch embeddings `(B, D, h, w)`.
            image_embeddings: Unit image embeddings `(B, D)`.

        Returns:
            `(B, C, h, w)`.
        """
        memory = patches.flatten(2).transpose(1, 2)
        queries = self.q_proj(self.descriptors(text, image_embeddings))
        *first, last = self.layers
        for layer in first:
            queries = layer(queries, memory)
        # What else the last layer has (values, feed-forward network) reaches no output.
        return last.mask_logits(queries, memory).unflatten(2, patches.shape[2:])  # type: ignore[operator]


class ZegCLIPNetwork(nn.Module):
    """Prompted encoder and decoder.

    Args:
        tower: The image tower; it is read, not owned.
        embedding_dimension: Size D of the joint image-text space.
        sizes: Sizes.
        dropout: Dropout of prompts and decoder.
        relationship_descriptor: See `AttentionToMaskDecoder`.
        repeat_class_embedding: See `PromptedEncoder`.
        position_mode: See `PromptedEncoder`.
        checkpoint_activations: See `PromptedEncoder`.

    Raises:
        InputError: Sizes that do not fit the CLIP.
    """

    def __init__(
        self,
        tower: ViTTower,
        embedding_dimension: int,
        sizes: ZegCLIPSizes,
        dropout: float = 0.1,
        relationship_descriptor: bool = True,
        repeat_class_embedding: bool = True,
        position_mode: PositionMode = "bilinear",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        blocks, deep = tower.num_layers, sizes.deep_prompt_layers
        if deep is None:
            deep = blocks - 1
        if not -blocks <= deep < blocks:
            raise InputError(
                f"sizes.deep_prompt_layers is {deep}, but CLIP's image tower has {blocks} blocks; give a number from "
                f"{-blocks} to {blocks - 1}."
            )
        if embedding_dimension % sizes.num_heads:
            raise InputError(
                f"sizes.num_heads is {sizes.num_heads}, which does not divide CLIP's embedding size "
                f"{embedding_dimension}."
            )
        self.encoder = PromptedEncoder(
            tower, sizes.num_prompts, deep, dropout, repeat_class_embedding, position_mode, checkpoint_activations
        )
        self.decoder = AttentionToMaskDecoder(
            embedding_dimension, sizes.num_layers, sizes.num_heads, sizes.feed_forward, dropout, relationship_descriptor
        )

    def forward(self, images: Tensor, text: Tensor) -> ZegCLIPOutput:
        """Give every text a mask.

        Args:
            images: Normalised `(B, 3, H, W)`.
            text: Unit text embeddings `(C, D)`.
        """
        return ZegCLIPOutput(self.decoder(text, *self.encoder(images)))
