"""Panoptic quality over things and stuff, seen and unseen classes.

torchmetrics has one too, with float states (sums depend on the order of images), no crowds and no seen classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ovsl.errors import InputError
from ovsl.scores import IOU_UNIT, SEGMENTS, panoptic_scores


class PanopticQuality(Metric):
    """PQ, SQ and RQ (Kirillov et al., *Panoptic Segmentation*, CVPR 2019, arXiv 1801.00868, section 4).

    A predicted and a true segment of one class match when their IoU, void pixels of the truth left out, exceeds one
    half; such a match is unique. Rules for void and crowd regions are those of the COCO panoptic API: a predicted
    segment that lies for more than half in void or in a crowd region of its class is no false positive, and a crowd
    region is neither found nor missed. A class enters the means when it occurs in the truth or in a prediction that
    counts.

    All states are int64 sums, so that any number of processes gives the same result to the last bit, as long as each
    image is counted once.

    Args:
        num_classes: Number of classes C.
        things: Whether each class is countable, (C,).
        seen: Whether each class was seen in training, (C,). Without it the seen, unseen and harmonic means are NaN.

    Raises:
        ValueError: If `things` or `seen` has not C entries.

    Example:
        >>> import torch
        >>> metric = PanopticQuality(num_classes=2, things=[True, False], seen=[True, False])
        >>> truth = torch.tensor([[1, 1, 2, 2]])
        >>> metric.update(torch.tensor([[1, 1, 1, 2]]), torch.tensor([0, 1]), truth, torch.tensor([0, 1]))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items() if name in ("PQ", "SQ", "RQ")}
        {'PQ': 0.333, 'SQ': 0.333, 'RQ': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    #: The entries of `compute` that are single numbers.
    scalars = (
        *("PQ", "SQ", "RQ", "PQ_things", "SQ_things", "RQ_things", "PQ_stuff", "SQ_stuff", "RQ_stuff"),
        *("PQ_seen", "PQ_unseen", "hPQ"),
    )

    iou_sum: Tensor
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor
    images: Tensor

    def __init__(self, num_classes: int, things: Sequence[bool], seen: Sequence[bool] | None = None) -> None:
        super().__init__()
        for name, flags in (("things", things), ("seen", seen)):
            if flags is not None and len(flags) != num_classes:
                raise ValueError(f"`{name}` has {len(flags)} entries for {num_classes} classes: give one for each.")
        self.num_classes = num_classes
        self.things = tuple(bool(value) for value in things)
        self.seen = None if seen is None else tuple(bool(value) for value in seen)
        for name in SEGMENTS:
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        segment_ids: Tensor,
        classes: Tensor,
        target_ids: Tensor,
        target_classes: Tensor,
        target_crowd: Tensor | None = None,
    ) -> None:
        """Match the segments of one image.

        Args:
            segment_ids: Predicted segments, integers (H, W): 0 for none, else 1..N.
            classes: Class of predicted segments 1..N, integers (N,).
            target_ids: True segments, integers (H, W): 0 for void, else 1..M.
            target_classes: Class of true segments 1..M, integers (M,).
            target_crowd: Whether each true segment is a crowd region, bool (M,). None for no crowd.

        Raises:
            InputError: If the maps differ in size, or an id or a class is out of range; nothing is counted then.
        """
        counts = match_segments(segment_ids, classes, target_ids, target_classes, target_crowd, self.num_classes)
        # Out of place: a state that was reset in inference mode could not be changed in place outside it.
        self.iou_sum = self.iou_sum + counts[0]
        self.true_positives = self.true_positives + counts[1]
        self.false_positives = self.false_positives + counts[2]
        self.false_negatives = self.false_negatives + counts[3]
        self.images = self.images + 1

    def compute(self) -> dict[str, Tensor]:
        """Divide the counts.

        Returns:
            Fractions in 0..1 as float64 on the CPU, NaN where undefined. `scalars` names the single numbers: PQ, SQ
            and RQ over all classes, over things and over stuff; PQ over seen and over unseen classes and the harmonic
            mean of these two, `hPQ`. Per class, (C,), NaN where the class does not enter the means: `pq`, `sq`, `rq`.
            And `images`, the number counted.
        """
        # On the CPU, since not every accelerator has float64.
        counts = {name: getattr(self, name).cpu().numpy() for name in SEGMENTS}
        scores = panoptic_scores(counts, self.things, self.seen)
        return {name: torch.as_tensor(value) for name, value in scores.items()} | {"images": self.images.cpu()}


def match_segments(
    segment_ids: Tensor,
    classes: Tensor,
    target_ids: Tensor,
    target_classes: Tensor,
    target_crowd: Tensor | None,
    num_classes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Match the segments of one image through one table of common pixels; no loop over segments.

    Args:
        segment_ids: See `PanopticQuality.update`.
        classes: See there.
        target_ids: See there.
        target_classes: See there.
        target_crowd: See there.
        num_classes: Number of classes C.

    Returns:
        Per class, (C,) int64: sum of the IoU of matches in units of 1 / `IOU_UNIT`, true positives, false positives,
        false negatives.

    Raises:
        InputError: If the maps differ in size, or an id or a class is out of range.
    """
    _check(segment_ids, classes, target_ids, target_classes, num_classes)
    rows, columns = len(target_classes) + 1, len(classes) + 1
    pairs = target_ids.flatten().long() * columns + segment_ids.flatten().long()
    common = torch.bincount(pairs, minlength=rows * columns).view(rows, columns)
    target_area, area = common.sum(dim=1)[1:], common.sum(dim=0)[1:]
    in_void, common = common[0, 1:], common[1:, 1:]
    crowd = torch.zeros_like(target_area, dtype=torch.bool) if target_crowd is None else target_crowd

    same_class = target_classes[:, None] == classes
    union = target_area[:, None] + area - common - in_void
    matched = same_class & ~crowd[:, None] & (2 * common > union)
    iou = torch.where(matched, common.double() / union.clamp(min=1), 0.0)
    target_found, found = matched.any(dim=1), matched.any(dim=0)
    in_crowd = (common * (same_class & crowd[:, None])).sum(dim=0)
    # Segments without a pixel are no segments.
    missed = ~target_found & ~crowd & (target_area > 0)
    extra = ~found & (area > 0) & (2 * (in_void + in_crowd) <= area)

    def count(labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=num_classes)

    units = (iou.sum(dim=0) * IOU_UNIT).round().long()
    iou_sum = torch.zeros(num_classes, dtype=torch.int64, device=units.device).index_add_(0, classes.long(), units)
    return iou_sum, count(classes[found]), count(classes[extra]), count(target_classes[missed])


def _check(segment_ids: Tensor, classes: Tensor, target_ids: Tensor, target_classes: Tensor, num_classes: int) -> None:
    if segment_ids.shape != target_ids.shape:
        raise InputError(
            f"the predicted segments are {tuple(segment_ids.shape)} but the true ones are {tuple(target_ids.shape)}: "
            "bring the prediction to the size of the target."
        )
    for what, ids, labels in (("predicted", segment_ids, classes), ("true", target_ids, target_classes)):
        low, high = (int(value) for value in torch.aminmax(ids)) if ids.numel() else (0, 0)
        if low < 0 or high > len(labels):
            raise InputError(
                f"the {what} segment map holds the id {low if low < 0 else high}, but there are {len(labels)} "
                "segments, numbered from 1: number them anew."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise InputError(
                f"a {what} segment has a class outside 0..{num_classes - 1}: check the labels and the vocabulary."
            )
