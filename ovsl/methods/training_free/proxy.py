"""Attention that another model gives: ProxyCLIP, and the models that stand beside CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.clip.image_tower import Grid
from ovsl.inference import resize
from ovsl.layers.colors import cell_colors
from ovsl.layers.dino import DINO, DINOSettings
from ovsl.methods.training_free.last_block import LastBlock, block_inputs


class ProxyModel(nn.Module, ABC):
    """A frozen model whose patch features say which patches belong together."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Patch features: float images, 0..1 and beyond where they are padded, `(B, 3, H, W)` -> `(B, D, h, w)`."""


class DINOProxy(ProxyModel):
    """DINO, DINOv2 or DINOv2 with registers.

    Args:
        settings: Which one.
        features: `final`: after the last norm (ProxyCLIP); `query+key`: sum of queries and keys of the last block
            (CorrCLIP).
    """

    def __init__(
        self,
        settings: DINOSettings = DINOSettings("vit_base_patch8_224.dino"),
        features: Literal["final", "query+key"] = "final",
    ) -> None:
        super().__init__()
        self.dino: DINO = settings.build()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """See `ProxyModel.forward`."""
        images = self.dino.normalize(images)
        if self.features == "final":
            return self.dino(images)
        projections = self.dino.last_projections(images)
        return projections.query + projections.key


class ColorProxy(ProxyModel):
    """Mean and deviation of the colours in every patch: no model at all, a stand-in for worlds of a few colours.

    Args:
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """See `ProxyModel.forward`; centred on grey, so that colours can be opposed."""
        mean, deviation = cell_colors(images, self.patch_size)
        return torch.cat([mean - 0.5, deviation, torch.full_like(mean[:, :1], 0.1)], dim=1)


def unit_patches(features: Tensor) -> Tensor:
    """Make unit vectors of all patches: `(B, D, h, w)` -> `(B, h*w, D)`."""
    return functional.normalize(features.flatten(2), dim=1).transpose(1, 2)


def masked_attention(logits: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed keys, `(B, N, N)`.

    A patch always sees itself: in a window of one colour no similarity stands out, and the softmax of nothing is no
    number.
    """
    itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return logits.masked_fill(~(allowed | itself), float("-inf")).softmax(dim=-1)


def patch_values(block: ResidualAttentionBlock, tokens: Tensor, grid: Grid, size: Grid) -> Tensor:
    """Return the values of the last attention for the patches, resized to another grid.

    Args:
        block: The last block.
        tokens: What enters it, `(B, 1 + h*w, width)`.
        grid: `(h, w)`.
        size: Wanted grid `(h', w')`.

    Returns:
        `(B, h'*w', width)`, heads side by side.
    """
    width = tokens.shape[2]
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    values = functional.linear(block.ln_1(tokens[:, 1:]), weight, bias)
    return resize(values.transpose(1, 2).unflatten(2, grid), size).flatten(2).transpose(1, 2)


class ProxyAttention(LastBlock):
    """Values of CLIP mixed by the similarities of another model's features, on that model's grid.

    Lan et al.: *ProxyCLIP*, ECCV 2024, arXiv 2408.04883 (section 3.2). Residual and MLP are dropped, the class token
    takes no part, and all heads share one attention.

    Args:
        proxy: The other model.
        shift: Similarities below this multiple of their mean over the window are masked (beta of the paper).
        scale: Factor of what is left (gamma).
    """

    def __init__(self, proxy: ProxyModel, shift: float = 1.2, scale: float = 3.0) -> None:
        super().__init__()
        self.proxy = proxy
        self.shift = shift
        self.scale = scale

    def forward(self, tower: ViTTower, images: Tensor, colors: Tensor, regions: Tensor | None = None) -> Tensor:
        """See `LastBlock.forward`; the grid is the other model's."""
        features = self.proxy(colors)
        size = (features.shape[2], features.shape[3])
        inputs, grid = block_inputs(tower, images)
        last = tower.blocks[-1]
        mixed = self.attention(unit_patches(features)) @ patch_values(last, inputs[-1], grid, size)
        return tower.project(last.attn.out_proj(mixed)).transpose(1, 2).unflatten(2, size)

    def attention(self, features: Tensor) -> Tensor:
        """Return the attention of all heads: unit vectors `(B, N, D)` -> `(B, N, N)`."""
        similarity = features @ features.transpose(1, 2)
        logits = (similarity - self.shift * similarity.mean(dim=(1, 2), keepdim=True)) * self.scale
        return masked_attention(logits, logits >= 0)
