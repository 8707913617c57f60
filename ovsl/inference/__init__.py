"""Inference on `Prediction`: whole image, sliding window, several views; label maps, segments, instances."""

from ovsl.inference.instance import Instances
from ovsl.inference.multi_scale import MultiScale
from ovsl.inference.nearest import NearestLabels
from ovsl.inference.pamr import PAMR
from ovsl.inference.panoptic import PanopticMap
from ovsl.inference.prediction import DensePrediction, MaskPrediction, Prediction, WordClasses, resize
from ovsl.inference.rows import Size
from ovsl.inference.segmentation import Segmentation, segment
from ovsl.inference.semantic import Inference, SlidingWindow, WholeImage, average_windows
from ovsl.inference.word_rules import WordInference, WordRules

__all__ = [
    "PAMR",
    "DensePrediction",
    "Inference",
    "Instances",
    "MaskPrediction",
    "MultiScale",
    "NearestLabels",
    "PanopticMap",
    "Prediction",
    "Segmentation",
    "Size",
    "SlidingWindow",
    "WholeImage",
    "WordClasses",
    "WordInference",
    "WordRules",
    "average_windows",
    "resize",
    "segment",
]
