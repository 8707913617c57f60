"""CLIP-lightweight: language-guided segmentation on light backbones."""

from ovsl.methods.clip_lightweight.fusion import CLIPLightweightSizes
from ovsl.methods.clip_lightweight.module import CLIPLightweight

__all__ = ["CLIPLightweight", "CLIPLightweightSizes"]
