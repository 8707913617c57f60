"""FC-CLIP: open-vocabulary masks from one frozen convolutional CLIP."""

from ovsl.methods.fc_clip.module import FCCLIP
from ovsl.methods.fc_clip.network import FCCLIPSizes, MaskDecoderSizes, PixelDecoderSizes

__all__ = ["FCCLIP", "FCCLIPSizes", "MaskDecoderSizes", "PixelDecoderSizes"]
