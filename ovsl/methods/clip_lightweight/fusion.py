"""CLIP-lightweight's fusion: a CNN and a transformer in parallel with a two-way bridge between them.

The paper's figure and equations were not at hand. Its abstract's words are those of Mobile-Former (Chen et al., CVPR
2022, https://arxiv.org/abs/2108.05895), so the block is a Mobile-Former block whose global tokens are the class texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ovsl.errors import InputError
from ovsl.layers import ContextDecoder, DenseAttentionPool, MultiHeadAttention, attend

Bridge = Literal["both", "v2t", "t2v", "none"]


@dataclass(frozen=True)
class CLIPLightweightSizes:
    """Sizes of what is added to the backbone.

    Args:
        width: Channels of the fusion's CNN.
        token_width: Width of its transformer.
        num_heads: Heads of all its attentions.
        num_layers: Its blocks.
        expand_ratio: Expansion of its CNN.
        mlp_ratio: Expansion of its feed-forward networks.
        position_grid: Side of the position grid of `fusion: context`.
        fpn_width: Channels of the pyramid.
        head_width: Channels of the head.
    """

    width: int = 256
    token_width: int = 256
    num_heads: int = 4
    num_layers: int = 2
    expand_ratio: int = 2
    mlp_ratio: int = 2
    position_grid: int = 16
    fpn_width: int = 128
    head_width: int = 128


class VisionToText(nn.Module):
    """Class tokens look at the map, which is key and value without projection.

    Args:
        width: Channels of the map.
        token_width: Width of the tokens.
        num_heads: Attention heads, over the channels of the map.
    """

    def __init__(self, width: int, token_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(token_width)
        self.query = nn.Linear(token_width, width)
        self.output = nn.Linear(width, token_width)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Tokens `(B, K, Z)` and map `(B, D, h, w)` -> tokens `(B, K, Z)`."""
        cells = features.flatten(2).transpose(1, 2)
        return tokens + self.output(attend(self.query(self.norm(tokens)), cells, cells, self.num_heads))


class TextToVision(nn.Module):
    """The map, a query without projection, looks at the class tokens.

    Args:
        width: Channels of the map.
        token_width: Width of the tokens.
        num_heads: Attention heads, over the channels of the map.
    """

    def __init__(self, width: int, token_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(token_width)
        self.key = nn.Linear(token_width, width)
        self.value = nn.Linear(token_width, width)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Map `(B, D, h, w)` and tokens `(B, K, Z)` -> map `(B, D, h, w)`."""
        tokens = self.norm(tokens)
        cells = features.flatten(2).transpose(1, 2)
        mixed = attend(cells, self.key(tokens), self.value(tokens), self.num_heads)
        return features + mixed.transpose(1, 2).unflatten(2, features.shape[2:])


class TextFormer(nn.Module):
    """Pre-norm transformer block over the class tokens, without positions: the order of classes says nothing.

    Args:
        width: Width of the tokens.
        num_heads: Attention heads.
        mlp_ratio: Expansion of the feed-forward network.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, K, Z)` in and out."""
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed)
        return tokens + self.ffn(self.norm2(tokens))


class MobileBlock(nn.Sequential):
    """Inverted residual: 1x1 expansion, 3x3 depthwise, 1x1 projection, added to the input.

    Args:
        width: Channels.
        expand_ratio: Expansion.
    """

    def __init__(self, width: int, expand_ratio: int) -> None:
        inner = expand_ratio * width
        super().__init__(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` in and out."""
        return features + super().forward(features)


class FusionBlock(nn.Module):
    """Vision to text, text transformer, CNN, text to vision; the order of Mobile-Former.

    Args:
        width: Channels of the map.
        token_width: Width of the class tokens.
        num_heads: Heads of all attentions.
        expand_ratio: Expansion of the CNN.
        mlp_ratio: Expansion of the feed-forward network.
        bridge: Which ways of the bridge exist.
    """

    def __init__(
        self, width: int, token_width: int, num_heads: int, expand_ratio: int, mlp_ratio: int, bridge: Bridge
    ) -> None:
        super().__init__()
        self.v2t = VisionToText(width, token_width, num_heads) if bridge in ("both", "v2t") else None
        self.former = TextFormer(token_width, num_heads, mlp_ratio)
        self.mobile = MobileBlock(width, expand_ratio)
        self.t2v = TextToVision(width, token_width, num_heads) if bridge in ("both", "t2v") else None

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, D, h, w)` and class tokens `(B, K, Z)`, in and out."""
        if self.v2t is not None:
            tokens = self.v2t(tokens, features)
        tokens = self.former(tokens)
        features = self.mobile(features)
        if self.t2v is not None:
            features = self.t2v(features, tokens)
        return features, tokens


class Fused(NamedTuple):
    """What a fusion module gives.

    Attributes:
        features: Map for the decoder, `(B, D, h, w)`.
        cells: Cells in the joint image-text space, `(B, D_t, h, w)`.
        text: Texts of each image, `(B, K, D_t)`.
    """

    features: Tensor
    cells: Tensor
    text: Tensor


class TwoWayFusion(nn.Module):
    """Draws image features and text embeddings closer to each other.

    Args:
        in_channels: Channels of the image map.
        embedding_dimension: Size D_t of the text embeddings.
        sizes: Sizes of CNN and transformer: channels D, width Z.
        bridge: `both` ways, one of them, or `none`.
        gamma: Initial weight of what the image adds to the texts. DenseCLIP's 1e-4 leaves that path without gradient
            for long.

    Raises:
        InputError: Heads that do not divide the widths.
    """

    def __init__(
        self,
        in_channels: int,
        embedding_dimension: int,
        sizes: CLIPLightweightSizes,
        bridge: Bridge = "both",
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        width, token_width, num_heads = sizes.width, sizes.token_width, sizes.num_heads
        if width % num_heads or token_width % num_heads:
            raise InputError(
                f"sizes.num_heads is {num_heads}, which does not divide sizes.width {width} and sizes.token_width "
                f"{token_width}."
            )
        self.out_channels = width
        self.vis_in = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.txt_in = nn.Sequential(nn.LayerNorm(embedding_dimension), nn.Linear(embedding_dimension, token_width))
        self.blocks = nn.ModuleList(
            FusionBlock(width, token_width, num_heads, sizes.expand_ratio, sizes.mlp_ratio, bridge)
            for _ in range(sizes.num_layers)
        )
        self.vis_out = nn.Conv2d(width, embedding_dimension, 1)
        self.txt_out = nn.Sequential(nn.LayerNorm(token_width), nn.Linear(token_width, embedding_dimension))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, MultiHeadAttention):
                nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.gamma = nn.Parameter(torch.full((embedding_dimension,), gamma))

    def forward(self, features: Tensor, text: Tensor) -> Fused:
        """Image map `(B, C, h, w)` and unit text embeddings `(K, D_t)`."""
        features = self.vis_in(features)
        tokens = self.txt_in(text).expand(len(features), -1, -1)
        for block in self.blocks:
            features, tokens = block(features, tokens)
        return Fused(features, self.vis_out(features), text + self.gamma * self.txt_out(tokens))


class ContextFusion(nn.Module):
    """DenseCLIP's way from image to text, for comparison: attention pool and context decoder, both new.

    Args:
        in_channels: Channels of the image map.
        embedding_dimension: Size of the text embeddings.
        grid: Side of the pool's position grid.
        gamma: Initial weight of what the image adds to the texts.
    """

    def __init__(self, in_channels: int, embedding_dimension: int, grid: int = 16, gamma: float = 1e-4) -> None:
        super().__init__()
        self.out_channels = embedding_dimension
        self.pool = DenseAttentionPool(in_channels, embedding_dimension, 8 if in_channels % 32 else 32, grid)
        self.context_decoder = ContextDecoder(embedding_dimension)
        self.gamma = nn.Parameter(torch.full((embedding_dimension,), gamma))

    def forward(self, features: Tensor, text: Tensor) -> Fused:
        """Image map `(B, C, h, w)` and unit text embeddings `(K, D_t)`."""
        image, cells = self.pool(features)
        visual = torch.cat([image.unsqueeze(1), cells.flatten(2).transpose(1, 2)], dim=1)
        text = text.expand(len(visual), -1, -1)
        return Fused(cells, cells, text + self.gamma * self.context_decoder(text, visual))
