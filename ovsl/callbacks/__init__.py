"""Beside the method: how a run is executed, checkpoints, pictures, prediction files, result files."""

from ovsl.callbacks.average import WeightAverage
from ovsl.callbacks.checkpoint import RunCheckpoint
from ovsl.callbacks.execution import Execution
from ovsl.callbacks.extremes import PredictionExtremes
from ovsl.callbacks.finite import FiniteValues
from ovsl.callbacks.pictures import PredictionPictures
from ovsl.callbacks.predictions import PredictionFiles
from ovsl.callbacks.preemption import Preemption
from ovsl.callbacks.progress import ProgressLines
from ovsl.callbacks.results import ResultFiles
from ovsl.callbacks.watchdog import Watchdog

__all__ = [
    "Execution",
    "FiniteValues",
    "PredictionExtremes",
    "PredictionFiles",
    "PredictionPictures",
    "Preemption",
    "ProgressLines",
    "ResultFiles",
    "RunCheckpoint",
    "Watchdog",
    "WeightAverage",
]
