"""PAMR: score maps refined along the edges of the image, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional


class PAMR:
    """Pixel-adaptive mask refinement.

    Araslanov, Roth: *Single-Stage Semantic Segmentation from Image Labels*, CVPR 2020, arXiv 2005.08104, section 3.3,
    with the neighbourhood and the constants of NACLIP (WACV 2025, arXiv 2404.08181). Every score is repeatedly replaced
    by the mean of its neighbours, weighted by how alike their colours are. All channels are refined alike and apart
    from each other, so that words can go through in chunks; neighbours are added up one after the other.

    Args:
        steps: Number of repetitions.
        dilations: Distances in pixels at which a pixel's eight neighbours lie, one ring for each.
    """

    def __init__(self, steps: int = 10, dilations: Sequence[int] = (8, 16)) -> None:
        self.steps = steps
        self.dilations = tuple(dilations)

    def weights(self, images: Tensor) -> Tensor:
        """Weigh the neighbours of every pixel.

        They do not depend on shift or scale of a colour channel, and so not on how the image is normalised.

        Args:
            images: Float `(B, 3, H, W)` at the size of the scores.

        Returns:
            `(B, 8 * number of dilations, H, W)`, adding up to one.
        """
        num_rings = len(self.dilations)
        count = 9 * num_rings  # the pixel itself is counted once with every ring
        mean = num_rings * images
        for neighbour in self._neighbours(images):
            mean = mean + neighbour
        mean = mean / count
        squares = num_rings * (images - mean).square()
        for neighbour in self._neighbours(images):
            squares = squares + (neighbour - mean).square()
        deviation = 1e-8 + 0.1 * (squares / (count - 1)).sqrt()
        # The channels are averaged neighbour by neighbour: 8 maps for each ring are held, not 24.
        logits = [-((images - neighbour).abs() / deviation).mean(1) for neighbour in self._neighbours(images)]
        return torch.stack(logits, dim=1).softmax(dim=1)

    def refine(self, scores: Tensor, weights: Tensor) -> Tensor:
        """Refine some channels of the scores.

        Args:
            scores: `(B, N, H, W)`.
            weights: Of `weights`.

        Returns:
            `(B, N, H, W)`.
        """
        for _ in range(self.steps):
            refined = torch.zeros_like(scores)
            for weight, neighbour in zip(weights.unbind(1), self._neighbours(scores), strict=True):
                refined.addcmul_(weight[:, None], neighbour)
            scores = refined
        return scores

    def _neighbours(self, maps: Tensor) -> Iterator[Tensor]:
        """Yield views of the maps moved to each neighbour; beyond the border lies the border's value."""
        height, width = maps.shape[-2:]
        margin = max(self.dilations)
        padded = functional.pad(maps, (margin,) * 4, mode="replicate")
        for distance in self.dilations:
            for down in (-distance, 0, distance):
                for right in (-distance, 0, distance):
                    if down or right:
                        top, left = margin + down, margin + right
                        yield padded[..., top : top + height, left : left + width]
