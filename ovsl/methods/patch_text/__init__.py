"""The plain trainable patch-text baseline."""

from ovsl.methods.patch_text.module import PatchText

__all__ = ["PatchText"]
