"""CLIP-DIY: crops of several sizes classified as images, guided by a foreground map."""

from ovsl.methods.clip_diy.module import CLIPDIY

__all__ = ["CLIPDIY"]
