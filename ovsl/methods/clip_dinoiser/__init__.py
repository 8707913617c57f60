"""CLIP-DINOiser: correlations of DINO and foreground of FOUND, learned by two heads on a frozen CLIP."""

from ovsl.methods.clip_dinoiser.module import CLIPDINOiser

__all__ = ["CLIPDINOiser"]
