"""FC-CLIP: one frozen convolutional CLIP."""

from ovsl.methods.fc_clip.module import FCCLIP, MaskDecoderSettings, PixelDecoderSettings

__all__ = ["FCCLIP", "MaskDecoderSettings", "PixelDecoderSettings"]
