"""Inference on :class:`Prediction`: whole image, sliding window, semantic label maps."""

from ovsl.inference.prediction import DensePrediction, MaskPrediction, Prediction, resize
from ovsl.inference.segmentation import Segmentation, segment
from ovsl.inference.semantic import Inference, SlidingWindow, WholeImage, average_windows, semantic_labels

__all__ = [
    "DensePrediction",
    "Inference",
    "MaskPrediction",
    "Prediction",
    "Segmentation",
    "SlidingWindow",
    "WholeImage",
    "average_windows",
    "resize",
    "segment",
    "semantic_labels",
]
