"""Official releases as Parquet files with one schema: where each dataset's files lie, how they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ovsl.prepare.ade20k import ade20k_150, ade20k_847
from ovsl.prepare.card import Description
from ovsl.prepare.cityscapes import cityscapes_19
from ovsl.prepare.coco import coco_panoptic_133, mapillary_vistas_65, painted_coco_object_81
from ovsl.prepare.conversion import Conversion, plan_conversion
from ovsl.prepare.few_shot import fss_1000
from ovsl.prepare.folder import OwnFolder, own_folder
from ovsl.prepare.index_masks import camvid_11, coco_object_81, coco_stuff_171, foodseg_103
from ovsl.prepare.layout import Item, Labelled, Layout, Release
from ovsl.prepare.pascal import pascal_context_59, pascal_context_60, pascal_context_459, pascal_voc_20, pascal_voc_21

LAYOUTS: Mapping[str, Callable[[], Layout]] = {
    "ade20k_150": ade20k_150,
    "ade20k_847": ade20k_847,
    "camvid": camvid_11,
    "cityscapes_19": cityscapes_19,
    "coco_object_81": coco_object_81,
    "coco_panoptic_133": coco_panoptic_133,
    "coco_stuff_171": coco_stuff_171,
    "foodseg_103": foodseg_103,
    "fss_1000": fss_1000,
    "mapillary_vistas_65": mapillary_vistas_65,
    "pascal_context_59": pascal_context_59,
    "pascal_context_60": pascal_context_60,
    "pascal_context_459": pascal_context_459,
    "pascal_voc_20": pascal_voc_20,
    "pascal_voc_21": pascal_voc_21,
}
"""The layout of each dataset of the catalogue."""

__all__ = [
    "LAYOUTS",
    "Conversion",
    "Description",
    "Item",
    "Labelled",
    "Layout",
    "OwnFolder",
    "Release",
    "own_folder",
    "painted_coco_object_81",
    "plan_conversion",
]
