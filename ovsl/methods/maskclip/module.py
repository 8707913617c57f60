"""MaskCLIP as a LightningModule."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ovsl.clip import DenseTower, ImageTower, TextEmbeddings
from ovsl.inference import DensePrediction, Prediction
from ovsl.layers import cosine_scores
from ovsl.methods.base import SegmentationModule


class MaskCLIP(SegmentationModule):
    """Dense CLIP features through the value path of the last attention layer, matched with text. Nothing trains.

    Zhou, Loy, Dai: *Extract Free Dense Labels from CLIP*, ECCV 2022, https://arxiv.org/abs/2112.01071. The variant is
    the one that CLIP-DINOiser builds on: residual and MLP of the last block are kept, no key smoothing, no prompt
    denoising; per-patch `softmax(temperature * cosine)` is upsampled and averaged over windows. Convolutional
    towers use their last map, projected cell by cell.

    Args:
        temperature: Factor of the cosine before the softmax; 100 in the paper whatever the checkpoint's own scale.
        **kwargs: See `SegmentationModule`.
    """

    trainable = False

    def __init__(self, temperature: float = 100.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = DenseTower(self.clip.require_tower(ImageTower, "MaskCLIP"))
        self.temperature = temperature

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Class probabilities on the patch grid; see `SegmentationModule.forward`."""
        scores = text.per_class(cosine_scores(self.network(self.clip.normalize(images)), text.vectors))
        return DensePrediction((self.temperature * scores).softmax(dim=1))
