"""Parts that two methods or more share."""

from ovsl.layers.attention import MLP, MultiHeadAttention
from ovsl.layers.deformable_attention import MultiScaleDeformableAttention
from ovsl.layers.mask_decoder import MaskedAttentionDecoder, attended_cells, pool_by_masks
from ovsl.layers.padding import pad_to_multiple
from ovsl.layers.pixel_decoder import PixelDecoder
from ovsl.layers.positions import sine_positions
from ovsl.layers.precision import full_precision
from ovsl.layers.similarity import cosine_scores

__all__ = [
    "MLP",
    "MaskedAttentionDecoder",
    "MultiHeadAttention",
    "MultiScaleDeformableAttention",
    "PixelDecoder",
    "attended_cells",
    "cosine_scores",
    "full_precision",
    "pad_to_multiple",
    "pool_by_masks",
    "sine_positions",
]
