"""Semantic segmentation quality over seen and unseen classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from ovsl.errors import InputError
from ovsl.scores import PIXELS, AbsentClasses, divide, semantic_scores


class OpenVocabularyIoU(Metric):
    """Pixel accuracy and intersection over union, over all, seen and unseen classes.

    Pixels are counted per class over the whole dataset and divided once, in `compute`. The states are sums of int64,
    so every number of processes gives the same result, to the last bit, as long as each image is counted once.

    A class that does not occur in the ground truth of the whole dataset has no agreed place in the mean. Two
    conventions are in circulation, and for Pascal Context 459 they differ by about four points:

    - `skip` (default): it is left out of the mean, predicted or not. detectron2 since July 2022, hence the released
      logs of FC-CLIP and SAN.
    - `zero`: it counts as 0 if it was predicted anywhere and is left out if it was not. MMSegmentation, hence ZegCLIP
      and MaskCLIP; detectron2 up to its 0.6 release.

    Args:
        num_classes: Number of classes C.
        seen: Whether each class was seen in training, (C,). Without it the seen, unseen and harmonic means are NaN.
        ignore_index: Target value of pixels that are not evaluated.
        absent: How classes without ground truth enter the means, `skip` or `zero`.

    Raises:
        ValueError: If `seen` has not C entries, `ignore_index` is the label of a class, or the convention is unknown.

    Example:
        >>> import torch
        >>> metric = OpenVocabularyIoU(num_classes=2, seen=[True, False])
        >>> metric.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 255]]))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items() if name in metric.scalars}
        {'pAcc': 0.667, 'mIoU': 0.5, 'fwIoU': 0.5, 'mIoU_seen': 0.5, 'mIoU_unseen': 0.5, 'hIoU': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    #: The entries of `compute` that are single numbers.
    scalars = ("pAcc", "mIoU", "fwIoU", "mIoU_seen", "mIoU_unseen", "hIoU")

    intersection: Tensor
    prediction_area: Tensor
    target_area: Tensor
    images: Tensor
    outside: Tensor

    def __init__(
        self,
        num_classes: int,
        seen: Sequence[bool] | None = None,
        ignore_index: int = 255,
        absent: AbsentClasses = "skip",
    ) -> None:
        super().__init__()
        if seen is not None and len(seen) != num_classes:
            raise ValueError(f"`seen` has {len(seen)} entries for {num_classes} classes: give one for each class.")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"`ignore_index` {ignore_index} is the label of a class: choose one outside the labels.")
        if absent not in get_args(AbsentClasses):
            raise InputError(f"`absent` is '{absent}': choose one of {', '.join(get_args(AbsentClasses))}.")
        self.num_classes = num_classes
        self.seen = None if seen is None else tuple(bool(value) for value in seen)
        self.ignore_index = ignore_index
        self.absent = absent
        for name in PIXELS:
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("images", "outside"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels of one image or batch.

        Args:
            prediction: Labels in 0..C-1, integers, (B, H, W) or (H, W).
            target: Labels in 0..C-1 or `ignore_index`, integers, same shape.

        Raises:
            InputError: If the shapes differ or a label is out of range; nothing is counted then. On an accelerator
                labels are only counted as out of range, and `compute` raises: looking would make the host wait.
        """
        if prediction.shape != target.shape:
            raise InputError(
                f"the prediction is {tuple(prediction.shape)} but the target is {tuple(target.shape)}: "
                "bring the prediction to the size of the target."
            )
        if _may_wait(prediction):
            _check_range(prediction, target, self.num_classes, self.ignore_index)
        else:
            prediction, target, outside = _keep_inside(prediction, target, self.num_classes, self.ignore_index)
            self.outside = self.outside + outside
        counts = count_pixels(prediction, target, self.num_classes, self.ignore_index)
        # Out of place: a state that was reset in inference mode could not be changed in place outside it.
        self.intersection = self.intersection + counts[0]
        self.prediction_area = self.prediction_area + counts[1]
        self.target_area = self.target_area + counts[2]
        self.images = self.images + (len(target) if target.ndim == 3 else 1)

    def compute(self) -> dict[str, Tensor]:
        """Divide the counts.

        Returns:
            Fractions in 0..1 as float64 on the CPU, NaN where undefined. `scalars` names the single numbers: pixel
            accuracy `pAcc`, `mIoU`, frequency-weighted `fwIoU`, `mIoU_seen`, `mIoU_unseen` and `hIoU`, the harmonic
            mean of these two. Per class, (C,): `iou` (NaN where the class does not enter the means), `accuracy`
            (share of its pixels that were found) and `pixels` (ground truth, int64). And `images`, the number counted.

        Raises:
            InputError: If a label was out of range on an accelerator, see `update`.
        """
        if self.outside:
            raise InputError(
                f"{int(self.outside)} pixels of predictions or targets have labels outside the {self.num_classes} "
                f"classes and other than the ignore index {self.ignore_index}: check the label maps and the vocabulary."
            )
        # On the CPU, since not every accelerator has float64.
        counts = {name: getattr(self, name).cpu().numpy() for name in PIXELS}
        scores = semantic_scores(counts, self.seen, self.absent)
        values = {name: torch.as_tensor(value) for name, value in scores.items()}
        accuracy = torch.as_tensor(divide(counts["intersection"], counts["target_area"]))
        return values | {"accuracy": accuracy, "pixels": self.target_area.cpu(), "images": self.images.cpu()}


def count_pixels(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, ...]:
    """Count pixels per class in memory of the order of pixels + classes.

    Args:
        prediction: Labels in 0..C-1, integers, any shape.
        target: Labels in 0..C-1 or `ignore_index`, integers, same shape.
        num_classes: Number of classes C.
        ignore_index: Target value of pixels that are left out.

    Returns:
        Intersection, prediction area and target area, each (C,) int64.
    """
    if num_classes**2 <= _TABLE_PER_PIXEL * target.numel():
        table = confusion_table(prediction, target, num_classes, ignore_index)
        return table.diagonal(), table.sum(0), table.sum(1)
    prediction, target = prediction.flatten().long(), target.flatten().long()
    ignored = target == ignore_index
    prediction, target = prediction.masked_fill(ignored, num_classes), target.masked_fill(ignored, num_classes)
    common = target.masked_fill(prediction != target, num_classes)
    return tuple(_histogram(labels, num_classes + 1)[:num_classes] for labels in (common, prediction, target))


def confusion_table(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count pixels by their true and their predicted class.

    Args:
        prediction: Labels in 0..C-1, integers, any shape.
        target: Labels in 0..C-1 or `ignore_index`, integers, same shape.
        num_classes: Number of classes C.
        ignore_index: Target value of pixels that do not count.

    Returns:
        int64 `(C, C)`, true classes in its rows.
    """
    prediction, target = prediction.flatten().long(), target.flatten().long()
    pairs = torch.add(prediction, target, alpha=num_classes)
    # Ignored pixels fall into a bin of their own, which is cut off; selecting the others would cost twice the time.
    pairs = pairs.masked_fill_(target == ignore_index, num_classes**2)
    return _histogram(pairs, num_classes**2 + 1)[:-1].view(num_classes, num_classes)


# One histogram of pairs is faster than three of labels as long as its table is not much larger than the image.
_TABLE_PER_PIXEL = 4


def _histogram(labels: Tensor, bins: int) -> Tensor:
    if _may_wait(labels):
        return torch.bincount(labels, minlength=bins)
    # `bincount` reads the largest label first, for which the host waits.
    ones = torch.ones((), dtype=torch.int64, device=labels.device).expand_as(labels)
    return torch.zeros(bins, dtype=torch.int64, device=labels.device).index_add_(0, labels, ones)


def _may_wait(labels: Tensor) -> bool:
    """Whether reading a number of the tensor is free, because it is where the program runs."""
    return labels.device.type == "cpu"


def _keep_inside(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring labels into 0..C-1, and count the pixels that were not, `()`, without making the host wait."""
    prediction, target = prediction.long(), target.long()
    kept, inside = prediction.clamp(0, num_classes - 1), target.clamp(0, num_classes - 1)
    inside = torch.where(target == ignore_index, target, inside)
    return kept, inside, ((kept != prediction) | (inside != target)).sum()


def _check_range(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> None:
    if not target.numel():
        return
    labels = {"prediction": prediction, "target": target.masked_fill(target == ignore_index, 0)}
    for what, extremes in ((what, torch.aminmax(values)) for what, values in labels.items()):
        for value in map(int, extremes):
            if not 0 <= value < num_classes:
                raise InputError(
                    f"a {what} pixel has the label {value}, but the {num_classes} classes have 0..{num_classes - 1} "
                    f"and the ignore index is {ignore_index}: check the label map and the vocabulary."
                )
