"""Frozen CLIP: image towers opened for dense features, and the text classifier."""

from ovsl.clip.image_tower import ConvNeXtTower, ConvTower, ImageTower, ResNetTower, ViTTower
from ovsl.clip.networks import DenseTower, TowerStages
from ovsl.clip.settings import CLIPSettings
from ovsl.clip.text import SynonymRule, TextClassifier, TextEmbeddings, TextEncoder
from ovsl.clip.towers import FrozenCLIP, ImageTowerUse, build_clip, build_network

__all__ = [
    "CLIPSettings",
    "ConvNeXtTower",
    "ConvTower",
    "DenseTower",
    "FrozenCLIP",
    "ImageTower",
    "ImageTowerUse",
    "ResNetTower",
    "SynonymRule",
    "TextClassifier",
    "TextEmbeddings",
    "TextEncoder",
    "TowerStages",
    "ViTTower",
    "build_clip",
    "build_network",
]
