"""A method with its words: segmenting, and scoring what was segmented on any number of datasets."""

from ovsl.evaluation.dataset import DatasetEvaluation, RunHeader
from ovsl.evaluation.episodes import EpisodeEvaluation
from ovsl.evaluation.evaluation import Evaluation
from ovsl.evaluation.segmenter import Method, Segmenter, photo_pixels
from ovsl.evaluation.words import Words

__all__ = [
    "DatasetEvaluation",
    "EpisodeEvaluation",
    "Evaluation",
    "Method",
    "RunHeader",
    "Segmenter",
    "Words",
    "photo_pixels",
]
