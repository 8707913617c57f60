"""Measures of quality, and the file format in which results are kept."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovsl.metrics.results import ClassResult, EvaluationResult

if TYPE_CHECKING:
    from ovsl.metrics.average_precision import MaskAveragePrecision
    from ovsl.metrics.panoptic import PanopticQuality
    from ovsl.metrics.segmentation import AbsentClasses, OpenVocabularyIoU

__all__ = [
    "AbsentClasses",
    "ClassResult",
    "EvaluationResult",
    "MaskAveragePrecision",
    "OpenVocabularyIoU",
    "PanopticQuality",
]

# Tables of results need no torch, whose import takes seconds; so a metric is imported when it is asked for.
_LATER = {
    "AbsentClasses": "segmentation",
    "MaskAveragePrecision": "average_precision",
    "OpenVocabularyIoU": "segmentation",
    "PanopticQuality": "panoptic",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"ovsl.metrics.{_LATER[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
