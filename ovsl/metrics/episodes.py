"""Binary IoU of questions for one class: the measure of few-shot segmentation."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from ovsl.scores import ASKED, PIXELS, episode_scores

COUNTS = (*PIXELS, *ASKED)
"""Counts of a question, pixels that are ignored left out."""


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
        kept = ~ignored
        counts = [(each & kept).sum() for each in (prediction & target, prediction, target, torch.ones_like(kept))]
        key = torch.tensor([image_key(id), label], device=target.device)
        self.entries.append(torch.cat([key, torch.stack(counts)])[None])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """See `Metric.sync`; a process without a question takes part all the same."""
        if not self.entries:
            self.entries.append(torch.zeros(0, 2 + len(COUNTS), dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Divide the counts.

        Returns:
            Fractions in 0..1 as float64 on the CPU, NaN where nothing was asked: `scalars`, and of each class `iou`,
            `(C,)`.
        """
        empty = torch.zeros(0, 2 + len(COUNTS), dtype=torch.int64)
        table = (dim_zero_cat(self.entries).cpu() if len(self.entries) else empty).numpy()
        values = self._figures(table)
        chosen = drawn(table[:, 0], table[:, 1], self.num_episodes, self.seed)
        values |= {f"{name}_episodes": value for name, value in self._figures(table[chosen]).items() if name != "iou"}
        return {name: torch.as_tensor(value) for name, value in values.items()}

    def _figures(self, table: np.ndarray) -> dict[str, np.ndarray]:
        counts = np.zeros((len(COUNTS), self.num_classes), np.int64)
        np.add.at(counts.T, table[:, 1], table[:, 2:])
        return episode_scores(dict(zip(COUNTS, counts, strict=True)))


def drawn(keys: np.ndarray, labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Draw questions: a class evenly, and then an image that holds it.

    Args:
        keys: Key of the image of each question, `(E,)`, see `image_key`.
        labels: Class of each question, `(E,)`.
        number: Questions to draw.
        seed: Of the draw.

    Returns:
        Index of each of the questions that were drawn, whose order among the given ones does not matter, `(number,)`.
    """
    order = np.lexsort((keys, labels))
    asked, count = np.unique(labels, return_counts=True)
    if not len(asked):
        return order
    draw = np.random.default_rng(seed)
    first = np.cumsum(count) - count
    chosen = draw.integers(len(asked), size=number)
    return order[first[chosen] + (draw.random(number) * count[chosen]).astype(np.int64)]


def image_key(id: str) -> int:
    """Make a number of the name of an image, for tensors and draws."""
    return zlib.crc32(id.encode())
