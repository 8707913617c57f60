"""What CLIP-DINOiser learns from: DINO's correlations and FOUND's foreground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ovsl.inference.prediction import resize
from ovsl.layers.dino import DINO, DINOSettings
from ovsl.layers.found import FOUND, FOUNDSettings
from ovsl.layers.similarity import correlations
from ovsl.methods.clip_dinoiser.network import CLIPDINOiserOutput

Projection = Literal["query", "key", "value"]


class Teachers(nn.Module):
    """Frozen DINO and FOUND behind the same output as the heads.

    Args:
        dino: Gives the correlations.
        found: Gives the foreground.
        projection: Which output of DINO's last `qkv` layer is compared.
    """

    def __init__(self, dino: DINO, found: FOUND, projection: Projection = "value") -> None:
        super().__init__()
        self.dino = dino
        self.found = found
        self.projection = projection

    def forward(self, images: Tensor, grid: tuple[int, int]) -> CLIPDINOiserOutput:
        """Compare cells and find the foreground.

        Args:
            images: uint8, or floating point 0..1, `(B, 3, H, W)`, padded to whole patches of CLIP.
            grid: `(h, w)` of CLIP's patches, which the foreground is resized to.

        Returns:
            Correlations on DINO's own grid, and probability of foreground.
        """
        features = getattr(self.dino.last_projections(self.dino.normalize(images)), self.projection)
        return CLIPDINOiserOutput(correlations(features), resize(self.found(images).sigmoid(), grid))


@dataclass(frozen=True)
class TeacherSettings:
    """Which teachers CLIP-DINOiser has.

    Args:
        dino: Gives the correlations.
        found: Gives the foreground.
        projection: Which output of DINO's last `qkv` layer is compared.
    """

    dino: DINOSettings = DINOSettings("vit_base_patch16_224.dino")  # noqa: RUF009 - frozen
    found: FOUNDSettings = FOUNDSettings()  # noqa: RUF009 - frozen
    projection: Projection = "value"

    def build(self) -> Teachers:
        """Build the frozen models; see `DINOSettings.build` and `FOUNDSettings.build` for the errors."""
        return Teachers(self.dino.build(), self.found.build(), self.projection)
