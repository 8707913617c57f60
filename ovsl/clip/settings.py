"""Which CLIP a method stands on, as configuration files say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ovsl.clip.towers import FrozenCLIP, ImageTowerUse, build_clip


@dataclass
class CLIPSettings:
    """Which CLIP a method stands on; see `ovsl.clip.build_clip`.

    Args:
        model: `toy_vit`, `toy_convnext`, or an open_clip model name such as `ViT-B-16`.
        pretrained: open_clip tag, local weights file, or `random`; left out for the toy models and with a `config`.
        quick_gelu: Activation that a weights file was trained with; leave out with a tag.
        config: open_clip configuration of a model that has no name.
    """

    model: str = "toy_vit"
    pretrained: str | None = None
    quick_gelu: bool | None = None
    config: dict[str, Any] | None = None

    def build(self, image_tower: ImageTowerUse = "frozen") -> FrozenCLIP:
        """Build the frozen model.

        Args:
            image_tower: What the method does with the image tower, see `ovsl.clip.ImageTowerUse`.

        Raises:
            InputError: See `ovsl.clip.build_clip`.
        """
        return build_clip(self.model, self.pretrained, self.quick_gelu, self.config, image_tower)
