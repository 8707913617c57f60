"""The CLIP-lightweight network: backbone, fusion with the texts at the coarsest level, Semantic FPN."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.errors import InputError
from ovsl.layers import Backbone, FeaturePyramid, SemanticFPNHead, embedded_score_map, score_map
from ovsl.methods.clip_lightweight.fusion import CLIPLightweightSizes, ContextFusion, TwoWayFusion


class CLIPLightweightOutput(NamedTuple):
    """What the network gives.

    Attributes:
        class_logits: `(B, K, h, w)` at the finest level.
        score_map: Cosines `(B, K, h', w')` of cells and texts at the coarsest level; None without fusion.
        text: Texts of each image, `(B, K, D_t)`.
        fused: The map that the fusion gives the decoder, `(B, D, h', w')`; None without fusion.
    """

    class_logits: Tensor
    score_map: Tensor | None
    text: Tensor
    fused: Tensor | None


class CLIPLightweightNetwork(nn.Module):
    """Backbone, fusion at its coarsest level, and a Semantic FPN.

    Args:
        backbone: Four maps at strides 4 to 32.
        embedding_dimension: Size D_t of the text embeddings.
        fusion: Fusion of image and text; None for none.
        sizes: Sizes of pyramid and head.
        num_classes: Classes of a closed set, whose score map is appended to the coarsest level; None for the open
            vocabulary, where the fused map is appended and every pixel is matched with the texts.
        temperature: Divisor of the cosines.
    """

    def __init__(
        self,
        backbone: Backbone,
        embedding_dimension: int,
        fusion: TwoWayFusion | ContextFusion | None,
        sizes: CLIPLightweightSizes,
        num_classes: int | None = None,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fusion = fusion
        self.num_classes = num_classes
        self.temperature = temperature
        channels = list(backbone.channels)
        if fusion is not None:
            channels[-1] += fusion.out_channels if num_classes is None else num_classes
        self.neck = FeaturePyramid(channels, sizes.fpn_width)
        self.head = SemanticFPNHead(sizes.fpn_width, sizes.head_width, num_classes or embedding_dimension)
        if num_classes is None:
            nn.init.kaiming_normal_(self.head.classifier.weight, mode="fan_out")

    def forward(self, images: Tensor, text: Tensor, as_published: bool = False) -> CLIPLightweightOutput:
        """Segment normalised images.

        Args:
            images: `(B, 3, H, W)`, sides of at least 64.
            text: Text embeddings `(K, D_t)`, any length.
            as_published: Embed every pixel before it is compared with the texts; the result is the same.

        Raises:
            InputError: Another number of classes than the closed set's.
        """
        if self.num_classes not in (None, len(text)):
            raise InputError(
                f"This decoder was built for {self.num_classes} classes and was given {len(text)}; evaluate on the "
                "training vocabulary, or train with model.decoder: text_match, which takes any classes."
            )
        levels = self.backbone(images)
        text = functional.normalize(text, dim=-1)
        if self.fusion is None:
            fused, scores = None, None
            text = text.expand(len(images), -1, -1)
        else:
            out = self.fusion(levels[-1], text)
            fused, text = out.features, out.text
            scores = score_map(out.cells, text)
            appended = fused if self.num_classes is None else scores
            levels[-1] = torch.cat([levels[-1], appended.to(levels[-1].dtype)], dim=1)
        maps = self.head.features(self.neck(levels))
        if self.num_classes is not None:
            logits = self.head.classifier(maps)
        elif as_published:
            logits = score_map(self.head.classifier(maps), text) / self.temperature
        else:
            logits = embedded_score_map(maps, self.head.classifier, text) / self.temperature
        return CLIPLightweightOutput(logits, scores, text, fused)
