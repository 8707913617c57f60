"""What travels between the data and a method: typed batches, and what a dataset is evaluated by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from torch import Tensor

from ovsl.detections import AveragePrecisionRules
from ovsl.vocabulary import Vocabulary


class TrainingBatch(TypedDict):
    """Images of one size.

    Attributes:
        image: uint8 RGB `(B, 3, H, W)`.
        semantic: int64 `(B, H, W)`, indices of the training vocabulary or its `ignore_index`; of 8 or 16 bits until it
            is on the device.
        id: Name of each image.
        segment_ids: From panoptic data, int32 `(B, H, W)`: 0 for no segment, else 1..N of the image.
        segment_classes: Class of segments 1..N of each image, int64 `(N,)`.
    """

    image: Tensor
    semantic: Tensor
    id: list[str]
    segment_ids: NotRequired[Tensor]
    segment_classes: NotRequired[list[Tensor]]


class EvaluationBatch(TypedDict):
    """Images of any sizes, their labels at the original ones.

    Attributes:
        image: uint8 RGB `(3, H, W)` of each image.
        original_size: `(H0, W0)` of each image.
        id: Name of each image.
        semantic: int64 `(H0, W0)`, indices of the dataset's vocabulary or its `ignore_index`; not for prediction.
        path: File of each image, for prediction.
        segment_ids: From panoptic data, int32 `(H0, W0)`: 0 for no segment, else 1..N.
        segment_classes: Class of segments 1..N, int64 `(N,)`.
        segment_crowd: Whether each is a region of uncounted things, bool `(N,)`.
        regions: Class-agnostic region map, int32 `(H0, W0)`: 0 for no region; where the data has them.
        instance_masks: The truth of mask AP where it is not that of the segments, bool `(N, H0, W0)`.
        instance_classes: Class of each of its masks, int64 `(N,)`.
        instance_crowd: Whether each is a region of uncounted things, bool `(N,)`.
    """

    image: list[Tensor]
    original_size: list[tuple[int, int]]
    id: list[str]
    semantic: NotRequired[list[Tensor]]
    path: NotRequired[list[str]]
    segment_ids: NotRequired[list[Tensor]]
    segment_classes: NotRequired[list[Tensor]]
    segment_crowd: NotRequired[list[Tensor]]
    regions: NotRequired[list[Tensor]]
    instance_masks: NotRequired[list[Tensor]]
    instance_classes: NotRequired[list[Tensor]]
    instance_crowd: NotRequired[list[Tensor]]


@dataclass(frozen=True)
class EvaluationTask:
    """One dataset that a verb goes through; tasks have the order of the data loaders.

    Args:
        name: Name under which scores are logged.
        vocabulary: Its classes; `seen` is what a split says, None where the method decides by overlap.
        published: Published figures of the row in percent.
        average_precision: Whose rules mask AP follows.
        episodes: Whether images are asked for one unseen class at a time, see `ovsl.evaluation.EpisodeEvaluation`.
    """

    name: str
    vocabulary: Vocabulary
    published: Mapping[str, float] = field(default_factory=dict)
    average_precision: AveragePrecisionRules = "coco"
    episodes: bool = False
