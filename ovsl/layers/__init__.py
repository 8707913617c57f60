"""Parts of networks that CLIP's towers and the methods share; they know neither."""

from ovsl.layers.attention import MLP, MultiHeadAttention, attend
from ovsl.layers.deformable_attention import MultiScaleDeformableAttention
from ovsl.layers.image_normalization import ImageNormalization
from ovsl.layers.mask_decoder import MaskedAttentionDecoder, attended_cells, pool_by_masks
from ovsl.layers.padding import pad_to_multiple
from ovsl.layers.pixel_decoder import PixelDecoder
from ovsl.layers.positions import PositionMode, interpolate_positions, sine_positions
from ovsl.layers.precision import full_precision
from ovsl.layers.similarity import cosine_scores

__all__ = [
    "MLP",
    "ImageNormalization",
    "MaskedAttentionDecoder",
    "MultiHeadAttention",
    "MultiScaleDeformableAttention",
    "PixelDecoder",
    "PositionMode",
    "attend",
    "attended_cells",
    "cosine_scores",
    "full_precision",
    "interpolate_positions",
    "pad_to_multiple",
    "pool_by_masks",
    "sine_positions",
]
