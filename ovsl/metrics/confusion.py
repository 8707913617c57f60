"""Which class was taken for which, over a dataset."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ovsl.metrics.segmentation import confusion_table


class ConfusionCounts(Metric):
    """Pixels by their true and their predicted class.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target value of pixels that do not count.
    """

    full_state_update = False

    table: Tensor

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("table", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels of one image; see `ovsl.metrics.segmentation.confusion_table`."""
        self.table = self.table + confusion_table(prediction, target, self.num_classes, self.ignore_index)

    def compute(self) -> Tensor:
        """Give the table of all processes on the CPU, int64 `(C, C)`, true classes in its rows."""
        return self.table.cpu()
