"""CAT-Seg: cost aggregation between dense CLIP features and texts."""

from ovsl.methods.cat_seg.module import CATSeg
from ovsl.methods.cat_seg.network import CATSegSizes

__all__ = ["CATSeg", "CATSegSizes"]
