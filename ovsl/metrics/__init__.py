"""Measures of quality: torchmetrics that only count."""

from ovsl.metrics.average_precision import MaskAveragePrecision
from ovsl.metrics.cityscapes import CityscapesAveragePrecision
from ovsl.metrics.panoptic import PanopticQuality
from ovsl.metrics.segmentation import AbsentClasses, OpenVocabularyIoU

__all__ = [
    "AbsentClasses",
    "CityscapesAveragePrecision",
    "MaskAveragePrecision",
    "OpenVocabularyIoU",
    "PanopticQuality",
]
