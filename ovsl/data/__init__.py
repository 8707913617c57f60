"""Sources of labelled images, their order, their transforms, and the data module."""

from ovsl.data.catalogue import Catalogued
from ovsl.data.datamodule import PredictionData, SegmentationDataModule
from ovsl.data.evaluation_set import EvaluationSet
from ovsl.data.folder import FolderSource
from ovsl.data.image_folder import ImageFolder
from ovsl.data.parquet import HubSource, ParquetSource
from ovsl.data.regions import ColorRegions, RegionFolder, RegionMaps, SegmentRegions
from ovsl.data.sources import ImageFiles, Row, Segments, Source
from ovsl.data.toy import ToySource
from ovsl.data.transforms import EvaluationTransform, TrainTransform

__all__ = [
    "Catalogued",
    "ColorRegions",
    "EvaluationSet",
    "EvaluationTransform",
    "FolderSource",
    "HubSource",
    "ImageFiles",
    "ImageFolder",
    "ParquetSource",
    "PredictionData",
    "RegionFolder",
    "RegionMaps",
    "Row",
    "SegmentRegions",
    "SegmentationDataModule",
    "Segments",
    "Source",
    "ToySource",
    "TrainTransform",
]
