"""Measures of quality, and the file format in which results are kept."""

from typing import TYPE_CHECKING, Any

from ovsl.metrics.results import ClassResult, EvaluationResult

if TYPE_CHECKING:
    from ovsl.metrics.segmentation import AbsentClasses, OpenVocabularyIoU

__all__ = ["AbsentClasses", "ClassResult", "EvaluationResult", "OpenVocabularyIoU"]


def __getattr__(name: str) -> Any:
    # Tables of results need no torch, whose import takes seconds; so the metric is imported when it is asked for.
    if name in __all__:
        from ovsl.metrics import segmentation

        return getattr(segmentation, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
