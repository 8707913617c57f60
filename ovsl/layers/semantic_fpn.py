"""Semantic FPN: a feature pyramid and the head that sums its upsampled levels.

Kirillov, Girshick, He, Dollár: *Panoptic Feature Pyramid Networks*, CVPR 2019, https://arxiv.org/abs/1901.02446.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Top-down pyramid: 1x1 laterals, nearest upsampling to the exact size of the finer level, 3x3 outputs.

    Args:
        in_channels: Channels of the levels, fine to coarse.
        width: Channels of every output.
    """

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in in_channels)
        for conv in (*self.lateral, *self.output):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels `(B, C_i, h_i, w_i)`, fine to coarse -> `(B, width, h_i, w_i)`."""
        maps = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for index in range(len(maps) - 1, 0, -1):
            finer = maps[index - 1]
            maps[index - 1] = finer + functional.interpolate(maps[index], size=finer.shape[-2:], mode="nearest")
        return [output(level) for output, level in zip(self.output, maps, strict=True)]


class SemanticFPNHead(nn.Module):
    """Level i passes `max(1, i)` blocks of 3x3 convolution, BatchNorm and ReLU, each doubled in size for i >= 1.

    Args:
        in_channels: Channels of every level of the pyramid.
        width: Channels of the blocks.
        out_channels: Channels of the result: classes, or the size of an embedding.
        num_levels: Number of levels.
        dropout: Of whole channels, before the last convolution.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, num_levels: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(_block(in_channels if step == 0 else width, width) for step in range(max(1, level)))
            for level in range(num_levels)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, out_channels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Pyramid levels, fine to coarse -> `(B, out_channels, h_0, w_0)` at the size of the finest."""
        return self.classifier(self.features(levels))

    def features(self, levels: Sequence[Tensor]) -> Tensor:
        """Give what the classifier reads, `(B, width, h_0, w_0)`."""
        size = levels[0].shape[-2:]
        finest, *coarser = (self._branch(*both) for both in zip(self.branches, levels, strict=True))
        if all(level.shape == coarser[0].shape for level in coarser):
            # The last doubling is linear: of their sum, it is one instead of three.
            coarser = [sum(coarser[1:], coarser[0])]
        for level in coarser:
            level = _doubled(level)
            if level.shape[-2:] != size:  # images whose sides 32 does not divide
                level = functional.interpolate(level, size=size, mode="bilinear", align_corners=False)
            finest = finest + level
        return self.dropout(finest)

    def _branch(self, branch: nn.Module, level: Tensor) -> Tensor:
        """Run the blocks of a level, with doublings in between."""
        first, *rest = branch.children()
        level = first(level)
        for block in rest:
            level = block(_doubled(level))
        return level


def _doubled(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


def _block(in_channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
