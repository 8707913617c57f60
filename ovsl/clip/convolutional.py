"""Dense features of convolutional CLIP towers: ConvNeXt (timm trunk) and CLIP's ModifiedResNet."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn import functional


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


def stage_channels(visual: Any) -> list[int]:
    """Channels of ``res2`` .. ``res5``."""
    if isinstance(visual, ModifiedResNet):
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        return [stage[-1].conv3.out_channels for stage in stages]
    return [info["num_chs"] for info in visual.trunk.feature_info]


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


def embed_masks(visual: Any, features: Tensor, masks: Tensor) -> Tensor:
    """Embed the regions of an image in the joint space with the tower's own pooling (FC-CLIP, section 3.3).

    ConvNeXt: the mean of the map inside a mask goes through the head norm and CLIP's projection. ResNet: attention
    pooling whose query is the mean of the whole map and whose keys are the cells inside the mask. An empty mask gives
    what the projection makes of a zero vector: finite, and meaningless.

    Args:
        visual: The tower.
        features: ``res5``, ``(B, channels, h, w)``.
        masks: bool ``(B, Q, h, w)``.

    Returns:
        ``(B, Q, D)``, not normalised.
    """
    if isinstance(visual, ModifiedResNet):
        return _attend_in_masks(visual.attnpool, features, masks)
    weights = masks.to(features.dtype)
    pooled = torch.einsum("bqhw,bchw->bqc", weights, features) / (weights.sum(dim=(2, 3)).unsqueeze(2) + 1e-8)
    cells = pooled.flatten(0, 1)[..., None, None]
    return visual.head(visual.trunk.forward_head(cells)).unflatten(0, masks.shape[:2])


def _attend_in_masks(pool: Any, features: Tensor, masks: Tensor) -> Tensor:
    global_position, grid_positions = pool.positional_embedding.split([1, len(pool.positional_embedding) - 1])
    side = int(len(grid_positions) ** 0.5)
    grid = grid_positions.T.unflatten(1, (side, side))[None]
    grid = functional.interpolate(grid, features.shape[-2:], mode="bilinear", align_corners=False)
    cells = (features + grid).flatten(2).transpose(1, 2)
    query = features.mean(dim=(2, 3)).unsqueeze(1) + global_position

    def split_heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)

    inside = masks.flatten(2)[:, None]
    filled = inside.any(dim=-1, keepdim=True)
    mixed = functional.scaled_dot_product_attention(
        split_heads(pool.q_proj(query)).expand(-1, -1, masks.shape[1], -1),
        split_heads(pool.k_proj(cells)),
        split_heads(pool.v_proj(cells)),
        # A row without a single key is NaN on some backends; it attends everywhere and is dropped afterwards.
        attn_mask=inside | ~filled,
    )
    return pool.c_proj(mixed.where(filled, 0).transpose(1, 2).flatten(2))


def is_convolutional(visual: torch.nn.Module) -> bool:
    """Whether a tower is one that :func:`stage_features` can open."""
    return isinstance(visual, ModifiedResNet) or (hasattr(visual, "trunk") and hasattr(visual.trunk, "stages"))
