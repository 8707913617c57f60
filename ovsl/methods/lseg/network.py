"""The LSeg network: a DPT image encoder whose pixel embeddings are matched with text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.layers import embedded_score_map, interpolate_positions

Matching = Literal["float32", "float16"]
LOGIT_SCALE = 1 / 0.07


@dataclass(frozen=True)
class LSegSizes:
    """Sizes of what LSeg adds to its backbone; the defaults are the published ones.

    Args:
        width: Channels of the decoder.
        reassemble: Channels of the four reassembled maps; None for the published ones of the patch size.
    """

    width: int = 256
    reassemble: tuple[int, ...] | None = None


class LSegOutput(NamedTuple):
    """What the network gives.

    Attributes:
        class_logits: Scaled cosines of pixels and texts, `(B, K, H, W)`.
    """

    class_logits: Tensor


class ViTPyramid(nn.Module):
    """Four maps at strides 4, 8, 16, 32 from four blocks of a vision transformer (DPT's readout and reassembly).

    Ranftl, Bochkovskiy, Koltun: *Vision Transformers for Dense Prediction*, ICCV 2021, https://arxiv.org/abs/2103.13413.

    Args:
        vit: timm `VisionTransformer` with patches of 16 or 32; its final norm and classifier are taken away.
        blocks: Blocks that are read, 0-based.
        channels: Channels of the four maps.
    """

    def __init__(self, vit: Any, blocks: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        vit.norm = vit.fc_norm = vit.head = nn.Identity()
        width, patch = vit.embed_dim, vit.patch_embed.proj.kernel_size[0]
        self.vit = vit
        self.blocks = tuple(blocks)
        self.channels = tuple(channels)
        self.readout = nn.ModuleList(nn.Sequential(nn.Linear(2 * width, width), nn.GELU()) for _ in blocks)
        self.reassemble = nn.ModuleList()
        for stride, out_channels in zip((4, 8, 16, 32), channels, strict=True):
            layers: list[nn.Module] = [nn.Conv2d(width, out_channels, 1)]
            if stride < patch:
                factor = patch // stride
                layers.append(nn.ConvTranspose2d(out_channels, out_channels, factor, stride=factor))
            elif stride > patch:
                layers.append(nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1))
            self.reassemble.append(nn.Sequential(*layers))

    def tokens(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Compute the outputs of the blocks that are read, `(B, 1 + h*w, width)`, and the grid `(h, w)`."""
        patches = self.vit.patch_embed.proj(images)
        grid = (patches.shape[2], patches.shape[3])
        first = self.vit.cls_token.expand(len(images), -1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + interpolate_positions(self.vit.pos_embed[0], grid, "bilinear")
        outputs = []
        for index, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if index in self.blocks:
                outputs.append(tokens)
        return outputs, grid

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` -> four maps, fine to coarse."""
        outputs, grid = self.tokens(images)
        levels = []
        for tokens, readout, reassemble in zip(outputs, self.readout, self.reassemble, strict=True):
            told = tell_class_token(tokens, *readout.children())
            levels.append(reassemble(told.transpose(1, 2).unflatten(2, grid)))
        return levels


def tell_class_token(tokens: Tensor, projection: nn.Module, activation: nn.Module) -> Tensor:
    """Project patches side by side with the class token: `(B, 1 + N, width)` -> `(B, N, width)` (DPT's "project").

    The class token is the same for all patches, and so is its half of the projection.
    """
    assert isinstance(projection, nn.Linear)
    of_patches, of_token = projection.weight.chunk(2, dim=1)
    shared = functional.linear(tokens[:, :1], of_token, projection.bias)
    return activation(functional.linear(tokens[:, 1:], of_patches) + shared)


class ResNetPyramid(nn.Module):
    """The four stages of a ResNet, strides 4, 8, 16, 32.

    Args:
        resnet: timm `ResNet`; pooling and classifier are taken away.
    """

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        resnet.global_pool = resnet.fc = nn.Identity()
        self.resnet = resnet
        self.channels = tuple(info["num_chs"] for info in resnet.feature_info[-4:])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` -> four maps, fine to coarse."""
        resnet = self.resnet
        out = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(images))))
        levels = []
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            out = stage(out)
            levels.append(out)
        return levels


class ResidualConvUnit(nn.Module):
    """ReLU, 3x3 convolution and BatchNorm, twice, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, width, h, w)` in and out."""
        out = self.bn1(self.conv1(functional.relu(features)))
        return features + self.bn2(self.conv2(functional.relu(out)))


class FusionBlock(nn.Module):
    """RefineNet-type fusion: add a finer level, refine, double the size.

    Args:
        width: Channels.
        with_skip: Whether a finer level is added; the coarsest block has nothing to add to.
    """

    def __init__(self, width: int, with_skip: bool = True) -> None:
        super().__init__()
        self.skip = ResidualConvUnit(width) if with_skip else None
        self.refine = ResidualConvUnit(width)
        self.output = nn.Conv2d(width, width, 1)

    def forward(self, features: Tensor, skip: Tensor | None = None) -> Tensor:
        """`(B, width, h, w)`, and a level of the same size -> `(B, width, 2h, 2w)`."""
        if self.skip is not None and skip is not None:
            features = features + self.skip(skip)
        # A convolution of single cells and the interpolation may change places: first it, on a quarter of the cells.
        features = self.output(self.refine(features))
        return functional.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Four fusion blocks from the coarsest level to half of the input's size.

    Args:
        in_channels: Channels of the levels, fine to coarse.
        width: Channels of the decoder.
    """

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in in_channels)
        last = len(in_channels) - 1
        self.fusion = nn.ModuleList(FusionBlock(width, with_skip=index != last) for index in range(last + 1))

    def paths(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Compute the outputs of the fusion blocks, fine to coarse; the first is the decoder's result."""
        maps = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        paths = [self.fusion[-1](maps[-1])]
        for fusion, level in zip(self.fusion[-2::-1], maps[-2::-1], strict=True):
            paths.insert(0, fusion(paths[0], level))
        return paths

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels, fine to coarse -> `(B, width, H/2, W/2)`."""
        return self.paths(levels)[0]


class SpatialRegularizer(nn.Module):
    """Convolution of each class's logits by one shared 3x3 kernel, so that any number of classes goes through.

    LSeg, section 3.3. The same kernel is used at every repetition, and the last repetition has no activation.

    Args:
        kind: `depthwise`, or `bottleneck`, which also adds the maximum over classes.
        depth: Repetitions; 0 counts as 1, as in the official code.
        activation: Between repetitions.
    """

    def __init__(
        self, kind: Literal["bottleneck", "depthwise"], depth: int, activation: Literal["lrelu", "tanh"] = "lrelu"
    ) -> None:
        super().__init__()
        self.kind = kind
        self.depth = max(depth, 1)
        self.depthwise = nn.Conv2d(1, 1, 3, padding=1)
        self.activation = {"lrelu": nn.LeakyReLU(0.01), "tanh": nn.Tanh()}[activation]

    def forward(self, logits: Tensor) -> Tensor:
        """`(B, K, h, w)` in and out."""
        for repetition in range(self.depth):
            out = self.depthwise(logits.flatten(0, 1).unsqueeze(1)).view_as(logits)
            if self.kind == "bottleneck":
                out = out + logits.amax(dim=1, keepdim=True)
            logits = out if repetition == self.depth - 1 else self.activation(out)
        return logits


class LSegNetwork(nn.Module):
    """Pixel embeddings of a DPT decoder, matched with text embeddings by scaled cosine.

    Args:
        encoder: Image encoder.
        embedding_dimension: Size D of the text embeddings.
        width: Channels of the decoder.
        regularizer: Spatial regularisation of the logits; None as in the released models.
        matching: `float16` rounds the unit embeddings and their products to half precision, as the official code
            does on a GPU.
    """

    def __init__(
        self,
        encoder: ViTPyramid | ResNetPyramid,
        embedding_dimension: int,
        width: int = 256,
        regularizer: SpatialRegularizer | None = None,
        matching: Matching = "float32",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(encoder.channels, width)
        self.head = nn.Conv2d(width, embedding_dimension, 1)
        self.regularizer = regularizer
        self.matching = matching

    def match(self, maps: Tensor, text: Tensor, as_published: bool = False) -> Tensor:
        """Compare what the decoder gives with texts.

        Args:
            maps: `(B, width, h, w)`.
            text: `(K, D)` or `(B, K, D)`, any length.
            as_published: Embed every pixel first; the result is the same. In half precision it is always so.

        Returns:
            Scaled cosines `(B, K, h, w)`.
        """
        # The scale is a constant in the official code too, whatever its name there says.
        scale = math.exp(math.log(LOGIT_SCALE))
        if self.matching == "float32" and not as_published:
            return scale * embedded_score_map(maps, self.head, text)
        dtype = torch.float16 if self.matching == "float16" else torch.float32
        text = text.to(dtype)
        text = (text / text.norm(dim=-1, keepdim=True)).expand(len(maps), -1, -1)
        features = self.head(maps).float()
        features = (features / features.norm(dim=1, keepdim=True)).to(dtype)
        rounded = torch.full((), scale, dtype=dtype, device=maps.device)
        return torch.einsum("bkd,bdhw->bkhw", text, rounded * features).float()

    def forward(self, images: Tensor, text: Tensor, as_published: bool = False) -> LSegOutput:
        """Match every pixel with texts, at the size of the input where 32 divides it.

        Args:
            images: Normalised `(B, 3, H, W)`.
            text: `(K, D)`, or `(B, K, D)` with classes of each image's own; any length.
            as_published: See `match`.
        """
        logits = self.match(self.decoder(self.encoder(images)), text, as_published)
        if self.regularizer is not None:
            logits = self.regularizer(logits)
        return LSegOutput(functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=True))
