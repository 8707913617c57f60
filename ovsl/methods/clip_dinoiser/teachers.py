"""What CLIP-DINOiser learns from: which cells belong together, and which are foreground."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.inference.prediction import resize
from ovsl.layers.dino import DINOSettings
from ovsl.layers.found import FOUNDSettings
from ovsl.layers.similarity import correlations
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
        dino: DINOSettings = DINOSettings("vit_base_patch16_224.dino"),  # noqa: B008 - frozen
        found: FOUNDSettings = FOUNDSettings(),  # noqa: B008 - frozen
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
        border_share: A cell is background when it is like at least this share of the border's cells.
        distance: Difference of colours, each 0..1, from which on two cells are unlike.
    """

    def __init__(self, patch_size: int = 8, border_share: float = 0.2, distance: float = 0.1) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.border_share = border_share
        self.distance = distance

    def forward(self, images: Tensor, grid: tuple[int, int]) -> CLIPDINOiserOutput:
        """See `Teachers.forward`."""
        colors = images.float() / 255 if images.dtype == torch.uint8 else images
        mean = functional.avg_pool2d(colors, self.patch_size)
        deviation = (functional.avg_pool2d(colors.square(), self.patch_size) - mean.square()).clamp(min=0).sqrt()
        # Centred on grey, so that colours can be opposed.
        features = torch.cat([mean - 0.5, deviation], dim=1)
        inner = torch.zeros(features.shape[-2:], dtype=torch.bool, device=features.device)
        inner[1:-1, 1:-1] = True
        cells = features.flatten(2).transpose(1, 2)
        distances = torch.cdist(cells, cells[:, ~inner.flatten()])
        like_border = distances.quantile(self.border_share, dim=2).unflatten(1, inner.shape)
        foreground = (10 * (like_border / self.distance - 1)).sigmoid()[:, None]
        return CLIPDINOiserOutput(correlations(features), resize(foreground, grid))
