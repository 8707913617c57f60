"""What CLIP-DINOiser learns from: which cells belong together, and which are foreground."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from ovsl.inference import resize
from ovsl.layers import DINOSettings, FOUNDSettings, correlations
from ovsl.layers.colors import cell_colors
from ovsl.methods.clip_dinoiser.network import CLIPDINOiserOutput


class Teachers(nn.Module, ABC):
    """Frozen models behind the same output as the heads."""

    @abstractmethod
    def forward(self, images: Tensor, grid: tuple[int, int]) -> CLIPDINOiserOutput:
        """Compare cells and find the foreground.

        Args:
            images: uint8, or floating point 0..1, `(B, 3, H, W)`, padded to whole patches of CLIP.
            grid: `(h, w)` of CLIP's patches, which the foreground is resized to.

        Returns:
            Correlations, on the teacher's own grid, and probability of foreground.
        """


class DINOTeachers(Teachers):
    """DINO for the correlations and FOUND for the foreground, as published.

    Args:
        dino: Gives the correlations.
        found: Gives the foreground.
        projection: Which output of DINO's last `qkv` layer is compared.

    Raises:
        InputError: One of them cannot be built.
    """

    def __init__(
        self,
        dino: DINOSettings = DINOSettings("vit_base_patch16_224.dino"),
        found: FOUNDSettings = FOUNDSettings(),
        projection: Literal["query", "key", "value"] = "value",
    ) -> None:
        super().__init__()
        self.dino = dino.build()
        self.found = found.build()
        self.projection = projection

    def forward(self, images: Tensor, grid: tuple[int, int]) -> CLIPDINOiserOutput:
        """See `Teachers.forward`."""
        features = getattr(self.dino.last_projections(self.dino.normalize(images)), self.projection)
        return CLIPDINOiserOutput(correlations(features), resize(self.found(images).sigmoid(), grid))


class ColorTeachers(Teachers):
    """Colours in place of models, for worlds of a few colours such as the toy one.

    Cells are compared by mean and deviation of their colours; foreground is what is unlike most of the image's border.

    Args:
        patch_size: Side of a cell in pixels.
        distance: Difference of colours, each 0..1, from which on two cells are unrelated.
        border_share: A cell is background when it is related to at least this share of the border's cells.
    """

    def __init__(self, patch_size: int = 8, distance: float = 0.2, border_share: float = 0.2) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.distance = distance
        self.border_share = border_share

    def forward(self, images: Tensor, grid: tuple[int, int]) -> CLIPDINOiserOutput:
        """See `Teachers.forward`; correlations fall from 1 with the distance, through 0 at `distance`."""
        colors = images.float() / 255 if images.dtype == torch.uint8 else images
        mean, deviation = cell_colors(colors, self.patch_size)
        cells = torch.cat([mean, deviation], dim=1).flatten(2).transpose(1, 2)
        related = (1 - torch.cdist(cells, cells) / self.distance).clamp(min=-1)
        size = (mean.shape[2], mean.shape[3])
        border = torch.ones(size, dtype=torch.bool, device=images.device)
        border[1:-1, 1:-1] = False
        like_border = related[..., border.flatten()].quantile(1 - self.border_share, dim=2)
        foreground = (-10 * like_border).sigmoid().unflatten(1, size)[:, None]
        return CLIPDINOiserOutput(related.unflatten(2, size), resize(foreground, grid))
