"""Side effects of a run: checkpoints, pictures, prediction files, result files."""

from ovsl.callbacks.checkpoint import RunCheckpoint
from ovsl.callbacks.pictures import PredictionPictures
from ovsl.callbacks.predictions import PredictionFiles
from ovsl.callbacks.results import ResultFiles

__all__ = ["PredictionFiles", "PredictionPictures", "ResultFiles", "RunCheckpoint"]
