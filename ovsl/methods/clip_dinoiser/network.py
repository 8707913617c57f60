"""CLIP-DINOiser's two heads, what they read of CLIP, and what is done with correlations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovsl.clip import ViTTower
from ovsl.clip.blocks import run_attention, run_value_block
from ovsl.inference import resize
from ovsl.layers import correlations, unit_vectors


@dataclass(frozen=True)
class CLIPDINOiserSizes:
    """Sizes of the heads.

    Args:
        width: Channels in which cells are compared.
        kernel_size: Side of the convolution before the comparison, odd.
        feature_block: CLIP block whose MLP input the heads read, counted from the end. Not the last one (-1), which
            MaskCLIP changes. None reads MaskCLIP's output features.
    """

    width: int = 256
    kernel_size: int = 3
    feature_block: int | None = -3


class CLIPFeatures(NamedTuple):
    """What is read of the frozen tower.

    Attributes:
        dense: MaskCLIP's features in the joint space `(B, D, h, w)`, not normalised.
        intermediate: Input of the heads `(B, C, h, w)`.
    """

    dense: Tensor
    intermediate: Tensor


class CLIPDINOiserOutput(NamedTuple):
    """Output of the heads, and of the teachers that they learn from.

    Attributes:
        correlations: Cosines between all cells `(B, h * w, h, w)`: query, then key.
        foreground: Probability of foreground `(B, 1, h, w)`; the heads give logits in training.
    """

    correlations: Tensor
    foreground: Tensor


class CLIPDINOiserNetwork(nn.Module):
    """Two convolutions that learn DINO's correlations and FOUND's foreground from features of CLIP.

    Args:
        channels: Channels C of those features.
        sizes: See `CLIPDINOiserSizes`.
    """

    def __init__(self, channels: int, sizes: CLIPDINOiserSizes) -> None:
        super().__init__()
        self.feature_block = sizes.feature_block
        side = sizes.kernel_size
        self.obj_proj = nn.Conv2d(channels, sizes.width, side, padding=side // 2, padding_mode="replicate")
        self.bkg_decoder = nn.Conv2d(channels, 1, 1)

    def forward(self, intermediate: Tensor) -> CLIPDINOiserOutput:
        """Compare cells and find the foreground.

        Args:
            intermediate: `(B, C, h, w)`, see `CLIPFeatures`.

        Returns:
            Correlations, and foreground logits.
        """
        return CLIPDINOiserOutput(
            correlations(self.obj_proj(intermediate)), self.bkg_decoder(unit_vectors(intermediate))
        )


class CLIPReader(nn.Module):
    """MaskCLIP, which keeps the normalised MLP input of one of the blocks before the last.

    Args:
        tower: CLIP's vision transformer; it is read, not owned.
        feature_block: See `CLIPDINOiserSizes`.
    """

    def __init__(self, tower: ViTTower, feature_block: int | None) -> None:
        super().__init__()
        self.tower = tower
        self.kept = None if feature_block is None else tower.num_layers + feature_block

    def forward(self, images: Tensor) -> CLIPFeatures:
        """Read normalised images `(B, 3, H, W)`."""
        tokens, grid = self.tower.stem(images)
        *blocks, last = self.tower.blocks
        intermediate: Tensor | None = None
        for index, block in enumerate(blocks):
            tokens = run_attention(block, tokens)
            normalized = block.ln_2(tokens)
            if index == self.kept:
                intermediate = normalized[:, 1:].transpose(1, 2).unflatten(2, grid)
            tokens = tokens + block.ls_2(block.mlp(normalized))
        dense = self.tower.project_patches(run_value_block(last, tokens), grid)
        return CLIPFeatures(dense, dense if intermediate is None else intermediate)


def pool(features: Tensor, weights: Tensor, threshold: float) -> Tensor:
    """Mean of the features over all cells, weighted by each cell's correlations (section 3.2).

    Args:
        features: `(B, D, h, w)`, resized to the grid of the correlations where that is another.
        weights: Correlations `(B, h' * w', h', w')`.
        threshold: Smaller correlations count as 0; 0 keeps all, negative ones too.

    Returns:
        `(B, D, h', w')`.
    """
    weights = drop_below(weights, threshold)
    size = (weights.shape[2], weights.shape[3])
    pooled = torch.einsum("bpq,bdq->bdp", weights.flatten(2), resize(features, size).flatten(2))
    return (pooled / (weights.sum(dim=(2, 3))[:, None] + 1e-6)).unflatten(2, size)


def drop_below(weights: Tensor, threshold: float) -> Tensor:
    """Set what is smaller than the threshold to 0; a threshold of 0 drops nothing."""
    return torch.where(weights < threshold, 0, weights) if threshold else weights


def mark_background(probabilities: Tensor, foreground: Tensor, certainty: float) -> Tensor:
    """Give cells to class 0 where no class is certain and there is no foreground; other classes stay as they are.

    Args:
        probabilities: `(B, C, h, w)`, class 0 the background.
        foreground: Probability of foreground `(B, 1, h, w)`.
        certainty: Probability of the best class from which on it is kept.
    """
    background = (probabilities.amax(dim=1) < certainty) & (foreground[:, 0] <= 0.5)
    first = torch.where(background, 1.0, probabilities[:, 0])
    return torch.cat([first[:, None], probabilities[:, 1:]], dim=1)
