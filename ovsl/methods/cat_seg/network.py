"""The network of CAT-Seg: costs of dense CLIP features and texts, aggregated and upsampled.

CLIP's image tower is handed in at every call and never registered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip.blocks import block_runner
from ovsl.clip.image_tower import ViTTower
from ovsl.layers.score_map import score_map
from ovsl.methods.cat_seg.aggregation import AggregatorLayer, Chunks
from ovsl.methods.cat_seg.decoder import UpsamplingBlock

NOT_SELECTED = -100.0
"""Logit of a class that the selection left out."""


@dataclass(frozen=True)
class CATSegSizes:
    """Sizes of the network; the defaults are those of the published ViT-B/16 model.

    Attributes:
        input_size: Height and width of the images that CLIP sees; 336 for ViT-L/14.
        guidance_blocks: CLIP blocks whose outputs guide the decoder, earlier first, 0-based; 7 and 15 for ViT-L/14.
        guidance_widths: Channels of those outputs after upsampling by 2 and by 4.
        decoder_guidance_widths: Channels that guide the two upsampling blocks; 0 for none.
        appearance_width: Channels of the spatial aggregation's guidance; 0 for none.
        text_width: Channels of the class aggregation's guidance; 0 for none.
        width: Channels of the aggregation.
        num_layers: Aggregator layers.
        num_heads: Heads of every attention.
        window_size: Side of the windows of the spatial aggregation, in patches.
        class_attention: `linear` or `full` attention among classes.
        max_classes: Classes that are aggregated: the best of more, padding for fewer; 0 for neither.
        decoder_widths: Channels after the two upsampling blocks.
        pooling: Rows and columns of patches averaged before the class aggregation, in training.
        evaluation_pooling: The same in evaluation.
    """

    input_size: tuple[int, int] = (384, 384)
    guidance_blocks: tuple[int, int] = (3, 7)
    guidance_widths: tuple[int, int] = (256, 128)
    decoder_guidance_widths: tuple[int, int] = (32, 16)
    appearance_width: int = 128
    text_width: int = 128
    width: int = 128
    num_layers: int = 2
    num_heads: int = 4
    window_size: int = 12
    class_attention: Literal["linear", "full"] = "linear"
    max_classes: int = 256
    decoder_widths: tuple[int, int] = (64, 32)
    pooling: tuple[int, int] = (2, 2)
    evaluation_pooling: tuple[int, int] = (1, 1)


class ImageFeatures(NamedTuple):
    """What CLIP's image tower gives.

    Attributes:
        dense: Patches in the joint space, `(B, D, h, w)`, not normalised.
        guidance: Patches after the guidance blocks, each `(B, W, h, w)`.
    """

    dense: Tensor
    guidance: list[Tensor]


class CATSegOutput(NamedTuple):
    """What the network gives.

    Attributes:
        logits: `(B, T, 4h, 4w)` on four times the patch grid; -100 for classes that were not selected.
        costs: Cosines of all classes, `(B, T, h, w)`.
        selected: Classes that were aggregated, ascending, int64 `(B, max_classes)`; None for all.
    """

    logits: Tensor
    costs: Tensor
    selected: Tensor | None


def run_class_residual_block(block: ResidualAttentionBlock, tokens: Tensor, as_released: bool = False) -> Tensor:
    """One CLIP block without attention: every token's value is added to the class token of the input.

    Args:
        block: The block.
        tokens: `(B, 1 + N, W)`, class token first.
        as_released: Also compute and project the queries and keys, which the result does not depend on.

    Returns:
        `(B, 1 + N, W)`.
    """
    attention, width = block.attn, tokens.shape[-1]
    first = 0 if as_released else 2 * width
    weight, bias = attention.in_proj_weight[first:], attention.in_proj_bias[first:]
    *_, values = attention.out_proj(
        functional.linear(block.ln_1(tokens), weight, bias).unflatten(-1, (-1, width))
    ).unbind(-2)
    tokens = tokens[:, :1] + block.ls_1(values)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def encode_images(
    tower: ViTTower,
    images: Tensor,
    guidance_blocks: Sequence[int],
    keep_inputs_only: bool = False,
    as_released: bool = False,
) -> ImageFeatures:
    """Run CLIP's image tower with a last block that keeps every patch to itself.

    Args:
        tower: The image tower.
        images: Normalised `(B, 3, H, W)`.
        guidance_blocks: Blocks whose outputs are kept, 0-based.
        keep_inputs_only: Keep only the inputs of blocks for the gradient.
        as_released: See `run_class_residual_block`.
    """
    tokens, grid = tower.stem(images)
    *blocks, last = tower.blocks
    kept = {}
    run = block_runner(keep_inputs_only)
    for index, block in enumerate(blocks):
        kept[index] = tokens = run(block, tokens)
    kept[len(blocks)] = tokens = run_class_residual_block(last, tokens, as_released)
    guidance = [kept[index][:, 1:].transpose(1, 2).unflatten(2, grid) for index in guidance_blocks]
    return ImageFeatures(tower.project_patches(tokens, grid), guidance)


class CATSegNetwork(nn.Module):
    """Cost aggregation and its decoder.

    Args:
        clip_width: Width of CLIP's image tower.
        embedding_dimension: Size D of the joint image-text space.
        sizes: Sizes of everything else.
        chunks: How many classes are worked on at a time.
    """

    def __init__(
        self,
        clip_width: int,
        embedding_dimension: int,
        sizes: CATSegSizes,
        chunks: Chunks,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.chunks = chunks
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(clip_width, width, factor, stride=factor)
            for width, factor in zip(sizes.guidance_widths, (2, 4), strict=True)
        )
        self.cost_embedding = nn.Conv2d(1, sizes.width, 7, padding=3)
        self.appearance_projection = (
            nn.Conv2d(embedding_dimension, sizes.appearance_width, 3, padding=1) if sizes.appearance_width else None
        )
        self.text_projection = nn.Linear(embedding_dimension, sizes.text_width) if sizes.text_width else None
        self.decoder_projections = nn.ModuleList(
            nn.Conv2d(source, width, 3, padding=1) if width else nn.Identity()
            for source, width in zip(sizes.guidance_widths, sizes.decoder_guidance_widths, strict=True)
        )
        self.layers = nn.ModuleList(
            AggregatorLayer(
                sizes.width,
                sizes.appearance_width,
                sizes.text_width,
                sizes.num_heads,
                sizes.window_size,
                sizes.class_attention,
                sizes.max_classes,
            )
            for _ in range(sizes.num_layers)
        )
        widths = (sizes.width, *sizes.decoder_widths)
        self.decoder = nn.ModuleList(
            UpsamplingBlock(width, out_width, guidance_width)
            for width, out_width, guidance_width in zip(
                widths[:-1], widths[1:], sizes.decoder_guidance_widths, strict=True
            )
        )
        self.head = nn.Conv2d(sizes.decoder_widths[-1], 1, 3, padding=1)

    def forward(self, tower: ViTTower, images: Tensor, text: Tensor, as_released: bool = False) -> CATSegOutput:
        """Segment images with the classes of a text.

        Args:
            tower: CLIP's image tower.
            images: Normalised `(B, 3, H, W)` of `sizes.input_size`.
            text: Unit text embeddings `(T, D)`.
            as_released: Repeat guidance and padding as the released code does, for its multiply-adds; the result is
                the same.
        """
        features = encode_images(tower, images, self.sizes.guidance_blocks, self.chunks.recompute, as_released)
        costs = score_map(features.dense, text)
        selected, chosen = self.select(costs), costs
        text_rows = text.expand(len(images) if as_released else 1, -1, -1)
        if selected is not None:
            chosen = costs.gather(1, selected[:, :, None, None].expand(-1, -1, *costs.shape[2:]))
            text_rows = text[selected]
        maps = self.embed_costs(chosen)
        appearance, around = self.appearance_guidance(features.dense), self.text_guidance(text_rows)
        pooling = self.sizes.pooling if self.training else self.sizes.evaluation_pooling
        for layer in self.layers:
            maps = layer(maps, appearance, around, pooling, self.chunks, as_released)
        logits = self.decode(maps, self.decoder_guidance(features.guidance), as_released)
        if selected is not None:
            everything = logits.new_full((*costs.shape[:2], *logits.shape[2:]), NOT_SELECTED)
            logits = everything.scatter(1, selected[:, :, None, None].expand_as(logits), logits)
        return CATSegOutput(logits, costs, selected)

    def select(self, costs: Tensor) -> Tensor | None:
        """Find the classes with the largest cosine anywhere in each image, int64 `(B, max_classes)`; None for all."""
        if not 0 < self.sizes.max_classes < costs.shape[1]:
            return None
        return costs.detach().amax(dim=(2, 3)).topk(self.sizes.max_classes, dim=1).indices.sort(dim=1).values

    def embed_costs(self, costs: Tensor) -> Tensor:
        """Embed every cost map on its own: `(B, T, h, w)` -> `(B, T, h, w, width)`."""
        maps = self.cost_embedding(costs.flatten(0, 1).unsqueeze(1))
        return maps.permute(0, 2, 3, 1).unflatten(0, costs.shape[:2])

    def appearance_guidance(self, dense: Tensor) -> Tensor | None:
        """Dense features `(B, D, h, w)` -> `(B, 1, h, w, appearance_width)`, the same for every class."""
        if self.appearance_projection is None:
            return None
        return functional.relu(self.appearance_projection(dense)).permute(0, 2, 3, 1).unsqueeze(1)

    def text_guidance(self, text: Tensor) -> Tensor | None:
        """Text embeddings `(B, T, D)` -> `(B, 1, T, text_width)`, the same for every position."""
        if self.text_projection is None:
            return None
        return functional.relu(self.text_projection(text)).unsqueeze(1)

    def decoder_guidance(self, features: Sequence[Tensor]) -> list[Tensor | None]:
        """Features of the guidance blocks -> `(B, 1, G, 2h, 2w)` and `(B, 1, G, 4h, 4w)`, None where switched off."""
        return [
            functional.relu(projection(upsample(maps))).unsqueeze(1) if width else None
            for maps, upsample, projection, width in zip(
                features, self.upsample, self.decoder_projections, self.sizes.decoder_guidance_widths, strict=True
            )
        ]

    def decode(self, maps: Tensor, guidance: Sequence[Tensor | None], as_released: bool = False) -> Tensor:
        """Upsample every class map: `(B, T, h, w, width)` -> logits `(B, T, 4h, 4w)`."""

        def upsample(chunk: Tensor) -> Tensor:
            planes = chunk.permute(0, 1, 4, 2, 3)
            for block, around in zip(self.decoder, guidance, strict=True):
                if as_released and around is not None:
                    around = around.expand(-1, planes.shape[1], -1, -1, -1)
                planes = block(planes, around)
            return self.head(planes.flatten(0, 1)).squeeze(1).unflatten(0, planes.shape[:2])

        return self.chunks(upsample, maps)
