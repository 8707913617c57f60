"""Dense features of convolutional CLIP towers: ConvNeXt (timm trunk) and CLIP's ModifiedResNet."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor


def stage_features(visual: Any, images: Tensor) -> dict[str, Tensor]:
    """Outputs of the stages of a convolutional image tower.

    Args:
        visual: open_clip ``TimmModel`` around a timm ConvNeXt, or ``ModifiedResNet``.
        images: Normalised ``(B, 3, H, W)``.

    Returns:
        ``stem`` and ``res2`` .. ``res5`` at strides 4, 8, 16, 32 (``stem``: 4 for ConvNeXt, 2 for ResNet), raw stage
        outputs without norm or projection.
    """
    features: dict[str, Tensor] = {}
    if isinstance(visual, ModifiedResNet):
        out = visual.act1(visual.bn1(visual.conv1(images)))
        out = visual.act2(visual.bn2(visual.conv2(out)))
        features["stem"] = out = visual.act3(visual.bn3(visual.conv3(out)))
        out = visual.avgpool(out)
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    else:
        features["stem"] = out = visual.trunk.stem(images)
        stages = list(visual.trunk.stages)
    for number, stage in enumerate(stages, start=2):
        features[f"res{number}"] = out = stage(out)
    return features


def project_map(visual: Any, features: Tensor) -> Tensor:
    """Bring the last stage's map into the joint image-text space, cell by cell.

    ConvNeXt: the trunk's head norm and CLIP's projection applied at every position. ResNet: the attention pool's
    value and output projections as 1x1 convolutions (MaskCLIP, section 3.2).

    Args:
        visual: The tower.
        features: ``res5``, ``(B, channels, h, w)``.

    Returns:
        ``(B, D, h, w)``, not normalised.
    """
    if isinstance(visual, ModifiedResNet):
        pool = visual.attnpool
        cells = pool.c_proj(pool.v_proj(features.permute(0, 2, 3, 1)))
        return cells.permute(0, 3, 1, 2)
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]
    embedded = visual.head(visual.trunk.forward_head(visual.trunk.norm_pre(cells)))
    return embedded.unflatten(0, (features.shape[0], *features.shape[2:])).permute(0, 3, 1, 2)


def dense_features(visual: Any, images: Tensor) -> Tensor:
    """Per-cell features in the joint image-text space, ``(B, D, H/32, W/32)``, not normalised."""
    return project_map(visual, stage_features(visual, images)["res5"])


def is_convolutional(visual: torch.nn.Module) -> bool:
    """Whether a tower is one that :func:`stage_features` can open."""
    return isinstance(visual, ModifiedResNet) or (hasattr(visual, "trunk") and hasattr(visual.trunk, "stages"))
