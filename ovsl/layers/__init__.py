"""Parts that the towers of CLIP and the networks of methods are built from; they know neither."""

from __future__ import annotations

from ovsl.layers.adaptive_pooling import adaptive_max_pool
from ovsl.layers.attention import MLP, MultiHeadAttention, attend
from ovsl.layers.attention_pool import DenseAttentionPool
from ovsl.layers.backbone import Backbone
from ovsl.layers.context_decoder import ContextDecoder
from ovsl.layers.deformable_attention import MultiScaleDeformableAttention
from ovsl.layers.dino import DINO, DINOSettings
from ovsl.layers.found import FOUND, FOUNDSettings
from ovsl.layers.image_normalization import ImageNormalization
from ovsl.layers.mask_decoder import MaskedAttentionDecoder, attended_cells, pool_by_masks
from ovsl.layers.padding import pad_to_multiple
from ovsl.layers.pillow_resize import resize_square
from ovsl.layers.pixel_decoder import PixelDecoder
from ovsl.layers.positions import PositionMode, interpolate_positions, sine_positions
from ovsl.layers.precision import full_precision
from ovsl.layers.recomputation import recompute
from ovsl.layers.score_map import embedded_score_map, score_map
from ovsl.layers.semantic_fpn import FeaturePyramid, SemanticFPNHead
from ovsl.layers.similarity import correlations, cosine_scores, unit_vectors

__all__ = [
    "DINO",
    "FOUND",
    "MLP",
    "Backbone",
    "ContextDecoder",
    "DINOSettings",
    "DenseAttentionPool",
    "FOUNDSettings",
    "FeaturePyramid",
    "ImageNormalization",
    "MaskedAttentionDecoder",
    "MultiHeadAttention",
    "MultiScaleDeformableAttention",
    "PixelDecoder",
    "PositionMode",
    "SemanticFPNHead",
    "adaptive_max_pool",
    "attend",
    "attended_cells",
    "correlations",
    "cosine_scores",
    "embedded_score_map",
    "full_precision",
    "interpolate_positions",
    "pad_to_multiple",
    "pool_by_masks",
    "recompute",
    "resize_square",
    "score_map",
    "sine_positions",
    "unit_vectors",
]
