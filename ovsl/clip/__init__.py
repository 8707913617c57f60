"""Frozen CLIP: image towers opened for dense features, and the text classifier."""

from ovsl.clip.settings import CLIPSettings, ImageTowerUse
from ovsl.clip.text import SynonymRule, TextClassifier, TextEmbeddings, TextEncoder
from ovsl.clip.towers import FrozenCLIP, build_clip, build_network

__all__ = [
    "CLIPSettings",
    "FrozenCLIP",
    "ImageTowerUse",
    "SynonymRule",
    "TextClassifier",
    "TextEmbeddings",
    "TextEncoder",
    "build_clip",
    "build_network",
]
