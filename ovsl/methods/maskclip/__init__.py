"""MaskCLIP: dense CLIP without training."""

from ovsl.methods.maskclip.module import MaskCLIP

__all__ = ["MaskCLIP"]
