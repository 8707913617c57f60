"""The side adapter network: masks and attention biases beside a frozen CLIP, recognition inside it.

The CLIP vision transformer is read through a view of it, and is not a part of the module tree here. Its first blocks
give features to the side network; its last blocks classify the masks, see `ovsl.methods.san.recognition`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.clip.blocks import block_runner
from ovsl.errors import InputError
from ovsl.methods.san.recognition import pool_biases, recognize, recognize_literally
from ovsl.methods.san.side_network import MaskDecoder, SideNetwork

Recognition = Literal["shared", "literal"]


@dataclass(frozen=True)
class SANSizes:
    """Sizes of what SAN trains; the defaults are those of the published ViT-B/16 model.

    Args:
        num_shallow_blocks: CLIP blocks that feed the side network; the others recognise.
        fusion: CLIP features that enter the side network, keyed by the place where they do:
            `{side block: CLIP block}`; 0 stands before the first block.
        width: Channels of the side network.
        num_layers: Blocks of the side network.
        num_heads: Attention heads of the side network.
        patch_size: Patch side of the side network in pixels; masks come out at this stride.
        image_size: Image side that its learned position grid is made for.
        num_queries: Q, the number of masks.
        num_mlp_layers: Linear layers of each of the mask decoder's MLPs.
        hidden_width: Channels of their hidden layers.
        embedding_dimension: Channels in which queries and pixels are compared.
        bias_heads: Bias maps of a query: None for one for each CLIP head, 1 for one for all heads.
        bias_layers: 1 for the same biases in all deep blocks, or the number of deep blocks.
    """

    num_shallow_blocks: int = 9
    fusion: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 3, 2: 6, 3: 9})
    width: int = 240
    num_layers: int = 8
    num_heads: int = 6
    patch_size: int = 16
    image_size: int = 640
    num_queries: int = 100
    num_mlp_layers: int = 3
    hidden_width: int = 256
    embedding_dimension: int = 256
    bias_heads: int | None = None
    bias_layers: int = 1


class SANOutput(NamedTuple):
    """What the network gives for one state of the side network.

    Attributes:
        mask_logits: `(B, Q, h, w)` on the side network's patch grid.
        mask_embeddings: Unit vectors in CLIP's joint space, `(B, Q, D)`.
        class_logits: Cosines of the mask embeddings with the texts, `(B, Q, N)`; CLIP's scale is not in them.
        auxiliary: The same of the supervised states before, first to last; empty unless asked for.
    """

    mask_logits: Tensor
    mask_embeddings: Tensor
    class_logits: Tensor
    auxiliary: tuple[SANOutput, ...] = ()


class SideAdapterNetwork(nn.Module):
    """Everything that SAN trains besides CLIP's position embedding and the no-object embedding.

    Args:
        tower: The image tower; it is read, not owned.
        sizes: Sizes.
        clip_scale: Size of CLIP's input relative to the side network's.
        supervised_blocks: Side blocks that are decoded in training, counted from 1; evaluation decodes the last.
        rescale_bias: Whether a learned scalar factor and offset act on all biases.
        recognition: `shared` computes as little as the result needs, see `recognize` and `MaskDecoder`;
            `literal` is the published form with the same result.
        checkpoint_activations: Keep only the inputs of all blocks in training and compute the rest twice; of the
            literal form, those of the deep blocks stay.

    Raises:
        InputError: Numbers of blocks or heads that do not fit the CLIP.
    """

    def __init__(
        self,
        tower: ViTTower,
        sizes: SANSizes,
        clip_scale: float = 0.5,
        supervised_blocks: tuple[int, ...] = (7, 8),
        rescale_bias: bool = True,
        recognition: Recognition = "shared",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(tower, sizes, supervised_blocks)
        self.tower = tower
        self.num_shallow_blocks = sizes.num_shallow_blocks
        self.clip_scale = clip_scale
        self.recognition: Recognition = recognition
        self.checkpoint_activations = checkpoint_activations
        self.side_network = SideNetwork(
            tower.width,
            sizes.width,
            sizes.num_layers,
            sizes.num_heads,
            sizes.patch_size,
            sizes.image_size,
            sizes.num_queries,
            sizes.fusion,
            supervised_blocks,
            checkpoint_activations,
        )
        self.mask_decoder = MaskDecoder(
            sizes.width,
            sizes.hidden_width,
            sizes.embedding_dimension,
            sizes.num_mlp_layers,
            tower.num_heads if sizes.bias_heads is None else sizes.bias_heads,
            sizes.bias_layers,
            rescale_bias,
        )

    def clip_input(self, images: Tensor) -> Tensor:
        """Shrink the images for CLIP: `(B, 3, H, W)` -> `(B, 3, floor(H * scale), floor(W * scale))`."""
        # Sampled with the factor itself, not with the ratio of the rounded sizes, as published.
        return functional.interpolate(images, scale_factor=self.clip_scale, mode="bilinear", align_corners=False)

    def forward(
        self, images: Tensor, text: Tensor, auxiliary: bool = False, recognition: Recognition | None = None
    ) -> SANOutput:
        """Predict masks and compare their embeddings with texts.

        Args:
            images: Normalised, padded `(B, 3, H, W)`.
            text: Unit text embeddings `(N, D)`, no-object among them.
            auxiliary: Decode every supervised block, for training; otherwise only the last.
            recognition: Another form than the network's own.
        """
        literal = (recognition or self.recognition) == "literal"
        run = block_runner(self.checkpoint_activations)
        shallow = islice(self.tower.intermediate_tokens(self.clip_input(images), run), self.num_shallow_blocks + 1)
        features, (clip_grid, *_) = zip(*shallow, strict=True)
        states, grid = self.side_network(images, [tokens[:, 1:] for tokens in features], clip_grid)
        masks, biases = zip(
            *(self.mask_decoder(tokens, grid, literal) for tokens in (states if auxiliary else states[-1:])),
            strict=True,
        )
        embeddings = self.recognize(features[-1], [pool_biases(one, clip_grid) for one in biases], literal)
        *earlier, last = (
            SANOutput(mask_logits, embedding, embedding @ text.T)
            for mask_logits, embedding in zip(masks, embeddings, strict=True)
        )
        return SANOutput(last.mask_logits, last.mask_embeddings, last.class_logits, tuple(earlier))

    def recognize(self, tokens: Tensor, biases: list[Tensor], literal: bool = False) -> list[Tensor]:
        """Embed masks by CLIP's deep blocks, see `ovsl.methods.san.recognition.recognize`.

        Args:
            tokens: Class token and patches after the last shallow block.
            biases: Pooled biases of each decoded state.
            literal: Whether to do it as published, see `recognize_literally`.

        Returns:
            For each state unit vectors `(B, Q, D)`.
        """
        if literal:
            return [recognize_literally(self.tower, tokens, one, self.num_shallow_blocks) for one in biases]
        joined = recognize(
            self.tower, tokens, torch.cat(biases, dim=3), self.num_shallow_blocks, self.checkpoint_activations
        )
        return list(joined.chunk(len(biases), dim=1))


def check_sizes(tower: ViTTower, sizes: SANSizes, supervised_blocks: tuple[int, ...]) -> None:
    """Refuse numbers of blocks or heads that do not fit the CLIP.

    Raises:
        InputError: With the number and what is possible.
    """
    num_deep_blocks = tower.num_layers - sizes.num_shallow_blocks
    if sizes.num_shallow_blocks < 0 or num_deep_blocks < 1:
        raise InputError(
            f"sizes.num_shallow_blocks is {sizes.num_shallow_blocks}, but the CLIP has {tower.num_layers} vision "
            "blocks and at least one of them has to recognise."
        )
    if sizes.bias_heads not in (None, 1, tower.num_heads):
        raise InputError(
            f"sizes.bias_heads is {sizes.bias_heads}; give 1, or {tower.num_heads} for one for each CLIP head."
        )
    if sizes.bias_layers not in (1, num_deep_blocks):
        raise InputError(
            f"sizes.bias_layers is {sizes.bias_layers}; give 1, or {num_deep_blocks} for one for each deep CLIP block."
        )
    for place, feature in sizes.fusion.items():
        if not (0 <= place <= sizes.num_layers and 0 <= feature <= sizes.num_shallow_blocks):
            raise InputError(
                f"sizes.fusion {place}: {feature} is impossible; side blocks go to {sizes.num_layers}, shallow CLIP "
                f"blocks to {sizes.num_shallow_blocks}."
            )
    if not supervised_blocks or not all(1 <= number <= sizes.num_layers for number in supervised_blocks):
        raise InputError(f"supervised_blocks {list(supervised_blocks)} have to lie in 1..{sizes.num_layers}.")
