"""The methods: one folder and one line here for each."""

from ovsl.methods.base import SegmentationModule
from ovsl.methods.maskclip import MaskCLIP
from ovsl.methods.patch_text import PatchText

__all__ = ["MaskCLIP", "PatchText", "SegmentationModule"]
