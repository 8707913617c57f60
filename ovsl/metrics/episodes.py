"""Binary IoU of questions for one class: the measure of few-shot segmentation."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class EpisodeIoU(Metric):
    """IoU of foreground and background over questions (image, class), as few-shot segmentation counts it.

    Intersections and unions are summed over questions. `binary_mIoU` is the mean of the foreground IoU over the
    classes that were asked, `FB_IoU` the mean of the IoU of all foreground and of all background (Min et al., *HSNet*,
    ICCV 2021, arXiv 2104.01538, from which LSeg took its evaluation). Published figures rest on 1000 questions: a
    class drawn evenly and then an image that holds it. Here every question counts once, and the same figures of one
    such draw stand beside, `_episodes`.

    Args:
        num_classes: Number of classes C.
        num_episodes: Questions of the draw.
        seed: Seed of the draw, which depends on the names of the images and on nothing else.
    """

    full_state_update = False

    #: The entries of `compute` that are single numbers.
    scalars = ("binary_mIoU", "FB_IoU", "binary_mIoU_episodes", "FB_IoU_episodes")

    entries: list[Tensor]

    def __init__(self, num_classes: int, num_episodes: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_episodes = num_episodes
        self.seed = seed
        self.add_state("entries", [], dist_reduce_fx="cat")

    def update(self, id: str, label: int, prediction: Tensor, target: Tensor, ignored: Tensor) -> None:
        """Count one question.

        Args:
            id: Name of the image.
            label: Class that was asked, 0..C - 1.
            prediction: Where it was found, bool `(H, W)`.
            target: Where it is, bool `(H, W)`.
            ignored: Pixels that do not count, bool `(H, W)`.
        """
        counts = [
            (combined & ~ignored).sum()
            for combined in (~prediction & ~target, prediction & target, ~(prediction & target), prediction | target)
        ]
        key = torch.tensor([zlib.crc32(id.encode()), label], device=target.device)
        self.entries.append(torch.cat([key, torch.stack(counts)])[None])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """See `Metric.sync`; a process without a question takes part all the same."""
        if not self.entries:
            self.entries.append(torch.zeros(0, 6, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Divide the counts.

        Returns:
            Fractions in 0..1 as float64 on the CPU, NaN where nothing was asked: `scalars`, and of each class `iou`,
            `(C,)`.
        """
        empty = torch.zeros(0, 6, dtype=torch.int64)
        table = (dim_zero_cat(self.entries).cpu() if len(self.entries) else empty).numpy()
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        values, iou = self._figures(table)
        drawn, _ = self._figures(self._draw(table))
        values |= {f"{name}_episodes": value for name, value in drawn.items()}
        return values | {"iou": iou}

    def _draw(self, table: np.ndarray) -> np.ndarray:
        asked = np.unique(table[:, 1])
        if not len(asked):
            return table
        draw = np.random.default_rng(self.seed)
        by_class = table[np.argsort(table[:, 1], kind="stable")]
        first = np.searchsorted(by_class[:, 1], asked)
        count = np.diff(np.append(first, len(table)))
        chosen = draw.integers(len(asked), size=self.num_episodes)
        return by_class[first[chosen] + (draw.random(self.num_episodes) * count[chosen]).astype(np.int64)]

    def _figures(self, table: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        entries = torch.from_numpy(table)
        sums = torch.zeros(self.num_classes, 4, dtype=torch.float64)
        sums.index_add_(0, entries[:, 1], entries[:, 2:].double())
        iou = sums[:, 1] / sums[:, 3]
        total = sums.sum(dim=0)
        both = torch.stack([total[0] / total[2], total[1] / total[3]])
        return {"binary_mIoU": iou.nanmean(), "FB_IoU": both.mean()}, iou
