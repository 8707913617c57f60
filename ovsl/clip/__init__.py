"""Frozen CLIP: image towers opened for dense features, and the text classifier."""

from ovsl.clip.text import SynonymRule, TextClassifier, TextEmbeddings
from ovsl.clip.towers import FrozenCLIP, build_clip, build_network

__all__ = ["FrozenCLIP", "SynonymRule", "TextClassifier", "TextEmbeddings", "build_clip", "build_network"]
