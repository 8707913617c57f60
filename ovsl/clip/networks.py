"""Networks of open_clip with random weights, from their configuration, and a tower as a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from timm.layers import Mlp
from torch import Tensor, nn

from ovsl.clip.image_tower import ConvTower, ImageTower


class DenseTower(nn.Module):
    """A tower read cell by cell, as a network of its own for methods that add nothing to it.

    Args:
        tower: The tower; it is read, not owned.
        **options: Of its `dense_features`.
    """

    def __init__(self, tower: ImageTower, **options: Any) -> None:
        super().__init__()
        self.tower = tower
        self.options = options

    def forward(self, images: Tensor) -> Tensor:
        """Patch features in the joint space: normalised `(B, 3, H, W)` -> `(B, D, h, w)`, not normalised."""
        return self.tower.dense_features(images, **self.options)


class TowerStages(nn.Module):
    """The stages of a frozen convolutional tower, as one network: of four, each would be compiled for its own shapes.

    Args:
        tower: The tower; it is read, not owned.
    """

    def __init__(self, tower: ConvTower) -> None:
        super().__init__()
        self.tower = tower

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised `(B, 3, H, W)` -> maps at stride 4, 8, 16 and 32, without gradient."""
        stages = self.tower.stage_features(images)
        return [stages[name] for name in ("res2", "res3", "res4", "res5")]


def build_network(config: dict[str, Any]) -> nn.Module:
    """Build an open_clip model with random weights from its configuration dictionary.

    A `vision_cfg` with `convnext: {depths, dims}` builds that ConvNeXt, which open_clip itself can only do for
    the sizes that timm has registered under a name.
    """
    config = deepcopy(config)
    convnext = config["vision_cfg"].pop("convnext", None)
    model_class = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model: nn.Module = model_class(**config)
    if convnext is not None:
        model.visual = _convnext_tower(config["embed_dim"], config["vision_cfg"], **convnext)
    return model


def _convnext_tower(
    embed_dim: int, vision_config: dict[str, Any], depths: Sequence[int], dims: Sequence[int]
) -> nn.Module:
    """Build an open_clip `TimmModel` around a ConvNeXt of any depths and widths, with CLIP's projection head."""
    tower = TimmModel("convnext_atto", embed_dim, vision_config["image_size"], pool="", proj="none")
    tower.trunk = timm.create_model("convnext_tiny", num_classes=0, depths=tuple(depths), dims=tuple(dims))
    if vision_config.get("timm_proj", "mlp") == "mlp":
        head = Mlp(dims[-1], 2 * embed_dim, embed_dim, bias=(True, False))
        tower.head = nn.Sequential(OrderedDict(mlp=head))
    else:
        tower.head = nn.Sequential(OrderedDict(proj=nn.Linear(dims[-1], embed_dim, bias=False)))
    return tower
