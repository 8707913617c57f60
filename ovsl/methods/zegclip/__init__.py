"""ZegCLIP: prompted CLIP and a decoder whose attention is the mask."""

from ovsl.methods.zegclip.module import ZegCLIP
from ovsl.methods.zegclip.network import ZegCLIPSizes

__all__ = ["ZegCLIP", "ZegCLIPSizes"]
