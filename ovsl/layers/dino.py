"""Frozen DINO and DINOv2 transformers of timm, read at any image size as their own code reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from ovsl.errors import InputError
from ovsl.layers.image_normalization import ImageNormalization
from ovsl.layers.positions import resize_with_offset


class AttentionProjections(NamedTuple):
    """Output of the last block's `qkv` layer for the patch tokens, heads side by side, not normalised.

    Attributes:
        query: `(B, D, h, w)`.
        key: `(B, D, h, w)`.
        value: `(B, D, h, w)`.
    """

    query: Tensor
    key: Tensor
    value: Tensor


class DINO(nn.Module):
    """A frozen vision transformer of timm that gives patch features, or queries, keys and values of its last block.

    Caron et al.: *Emerging Properties in Self-Supervised Vision Transformers*, ICCV 2021, arXiv 2104.14294; Oquab et
    al.: *DINOv2*, arXiv 2304.07193; registers: Darcet et al., ICLR 2024, arXiv 2309.16588. Positions are resized as
    the original code does it (see `resize_positions`), not as timm does, which changes correlations visibly.

    Args:
        model: timm `VisionTransformer` with a class token.

    Raises:
        InputError: Another kind of model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, VisionTransformer) or model.cls_token is None or model.pos_embed is None:
            raise InputError(
                f"{type(model).__name__} is no vision transformer with a class token and learned positions; choose a "
                "DINO or DINOv2 model of timm, such as vit_base_patch16_224.dino."
            )
        self.model = model
        self.normalize = ImageNormalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.requires_grad_(False)
        self.train(False)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    @property
    def embedding_dimension(self) -> int:
        """Channels D of the features."""
        return int(self.model.embed_dim)

    def train(self, mode: bool = True) -> DINO:
        """Stay in evaluation mode, whatever the method around it does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Patch features of the last block after the final norm.

        Args:
            images: Normalised as in training (see `normalize`), `(B, 3, H, W)`; what is left of a side beyond whole
                patches is dropped.

        Returns:
            `(B, D, h, w)`, not normalised.
        """
        tokens, grid = self._embed(images)
        for block in self.model.blocks:
            tokens = block(tokens)
        return self._map(self.model.norm(tokens), grid)

    def last_projections(self, images: Tensor) -> AttentionProjections:
        """Compute queries, keys and values of the last block; what follows them is not computed.

        Args:
            images: As for `forward`.
        """
        tokens, grid = self._embed(images)
        *first, last = list[Any](self.model.blocks)
        for block in first:
            tokens = block(tokens)
        query, key, value = last.attn.qkv(last.norm1(tokens)).chunk(3, dim=-1)
        return AttentionProjections(self._map(query, grid), self._map(key, grid), self._map(value, grid))

    def resize_positions(self, grid: tuple[int, int]) -> Tensor:
        """Resize the position embeddings of the patches to a grid, bicubic.

        DINO and DINOv2 do it by `resize_with_offset` whenever the grid is not their own square; DINOv2 with registers
        goes by the size and antialiases.

        Args:
            grid: Wanted grid `(h, w)`.

        Returns:
            `(1, h * w, D)`.
        """
        patches = self._positions[:, -(self._own_side**2) :]
        own = self._own_side
        if grid == (own, own):
            return patches
        maps = patches.transpose(1, 2).unflatten(2, (own, own))
        if self.model.reg_token is not None:
            maps = functional.interpolate(maps, size=grid, mode="bicubic", antialias=True)
        else:
            maps = resize_with_offset(maps, grid)
        return maps.flatten(2).transpose(1, 2)

    @property
    def _positions(self) -> Tensor:
        positions = self.model.pos_embed
        assert positions is not None
        return positions

    @property
    def _own_side(self) -> int:
        return int(self._positions.shape[1] ** 0.5)  # with or without a row for the class token

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens that enter the first block: class, registers, patches; and the grid."""
        maps = self.model.patch_embed.proj(images)
        grid = (maps.shape[2], maps.shape[3])
        patches = maps.flatten(2).transpose(1, 2) + self.resize_positions(grid)
        assert self.model.cls_token is not None
        first: Tensor = self.model.cls_token
        if not self.model.no_embed_class:
            first = first + self._positions[:, :1]
        if self.model.reg_token is not None:
            first = torch.cat([first, self.model.reg_token], dim=1)
        tokens = torch.cat([first.expand(len(images), -1, -1), patches], dim=1)
        return self.model.norm_pre(tokens), grid

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


@dataclass(frozen=True)
class DINOSettings:
    """Which DINO stands beside CLIP.

    Args:
        model: timm model name, with the tag of its weights: `vit_base_patch16_224.dino`, `vit_small_patch8_224.dino`,
            `vit_base_patch14_reg4_dinov2.lvd142m` ...
        pretrained: `timm` for the weights of the tag, a local file with names of timm or of the original release, or
            None for random weights.
        options: More arguments of `timm.create_model`, such as `img_size`, `embed_dim`, `depth` and `num_heads`.
    """

    model: str = "vit_base_patch16_224.dino"
    pretrained: str | None = "timm"
    options: dict[str, Any] | None = None

    def build(self) -> DINO:
        """Build the frozen model.

        Raises:
            InputError: timm has no such model or no such weights, they cannot be reached, or the file does not fit.
        """
        if not timm.is_model(self.model):
            close = ", ".join(timm.list_models("*dino*")[:5])
            raise InputError(f"timm has no model {self.model!r} to be the DINO teacher; it has {close} and more.")
        by_tag = self.pretrained == "timm"
        try:
            model = timm.create_model(self.model, pretrained=by_tag, num_classes=0, **(self.options or {}))
        except Exception as error:  # the hub client raises a dozen unrelated types when there is no network
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"timm cannot build {self.model!r}{' with its weights' if by_tag else ''}: {reason}; give the name "
                "with the tag of its weights, run once with network access, or set `pretrained` to a local file."
            ) from error
        dino = DINO(model)
        if self.pretrained is not None and not by_tag:
            load_dino(dino, read_weights(self.pretrained))
        return dino


def read_weights(file: str) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` or a PyTorch file.

    Raises:
        InputError: There is no such file, or it holds no tensors by name.
    """
    if not Path(file).is_file():
        raise InputError(f"There is no weights file {file!r}.")
    if file.endswith(".safetensors"):
        return load_file(file)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{file!r} holds no plain dictionary of tensors; save the model's state dict alone.")
    return weights


def load_dino(dino: DINO, weights: Mapping[str, Tensor]) -> None:
    """Load weights under names of timm, or of the original DINO and DINOv2 releases.

    Raises:
        InputError: With what is missing, left over or of another shape.
    """
    weights = {name: tensor for name, tensor in weights.items() if name != "mask_token" and not name.startswith("head")}
    if "register_tokens" in weights:
        # timm keeps the positions of the patches alone and has the class token's in the token itself.
        positions = weights["pos_embed"]
        weights["reg_token"] = weights.pop("register_tokens")
        weights["cls_token"], weights["pos_embed"] = weights["cls_token"] + positions[:, :1], positions[:, 1:]
    try:
        dino.model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The DINO weights do not fit the model: {reason}") from error
