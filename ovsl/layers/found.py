"""FOUND: a foreground map from the keys of a frozen DINO and one 1x1 convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.errors import InputError
from ovsl.layers.dino import DINO, DINOSettings
from ovsl.layers.padding import pad_to_multiple


class FOUND(nn.Module):
    """Class-agnostic foreground of an image, frozen.

    Simeoni et al.: *Unsupervised Object Localization: Observing the Background to Discover Objects*, CVPR 2023, arXiv
    2212.07834.

    Args:
        dino: The frozen transformer, ViT-S/8 in the release.
    """

    def __init__(self, dino: DINO) -> None:
        super().__init__()
        self.dino = dino
        self.decoder = nn.Conv2d(dino.embedding_dimension, 1, 1)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Foreground logits of the patches.

        Args:
            images: uint8 0..255, or floating point 0..1, RGB `(B, 3, H, W)`; padded with zeros after normalisation to
                whole patches.

        Returns:
            `(B, 1, ceil(H / patch), ceil(W / patch))`, positive for foreground.
        """
        images = pad_to_multiple(self.dino.normalize(images), self.dino.patch_size)
        logits: Tensor = self.decoder(self.dino.last_projections(images).key)
        return logits

    def saliency(self, images: Tensor) -> Tensor:
        """Foreground probability of the pixels, `(B, 1, H, W)`: logits are upsampled, then the sigmoid taken."""
        logits = functional.interpolate(self(images), scale_factor=float(self.dino.patch_size), mode="bilinear")
        return logits[..., : images.shape[-2], : images.shape[-1]].sigmoid()


@dataclass(frozen=True)
class FOUNDSettings:
    """Which FOUND gives the foreground.

    Args:
        decoder: The released decoder file (`{"decoder": {"weight", "bias"}}`). None goes with a random DINO only.
        dino: The transformer that the decoder was trained on.
    """

    decoder: str | None = None
    dino: DINOSettings = DINOSettings("vit_small_patch8_224.dino")

    def build(self) -> FOUND:
        """Build the frozen model.

        Raises:
            InputError: There is no decoder for trained features, or a part cannot be built.
        """
        if self.decoder is None and self.dino.pretrained is not None:
            raise InputError(
                "The foreground map needs FOUND's released decoder: set `decoder` to its file (decoder_weights.pt of "
                "github.com/valeoai/FOUND), or turn the map off."
            )
        found = FOUND(self.dino.build())
        if self.decoder is not None:
            if not Path(self.decoder).is_file():
                raise InputError(f"There is no FOUND decoder file {self.decoder!r}.")
            load_decoder(found, torch.load(self.decoder, map_location="cpu", weights_only=True))
        return found


def load_decoder(found: FOUND, release: Mapping[str, Any]) -> None:
    """Load the decoder of a release: `{"decoder": {"weight": (1, D, 1, 1), "bias": (1,)}}`.

    Raises:
        InputError: The file holds something else, or a decoder for another width.
    """
    weights = release.get("decoder")
    expected = {name: tuple(tensor.shape) for name, tensor in found.decoder.state_dict().items()}
    if not isinstance(weights, Mapping) or {name: tuple(w.shape) for name, w in weights.items()} != expected:
        raise InputError(f"This is no FOUND decoder for the DINO beside it: it should hold {expected} as 'decoder'.")
    found.decoder.load_state_dict(weights)
