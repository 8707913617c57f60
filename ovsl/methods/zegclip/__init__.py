"""ZegCLIP: prompted CLIP and a decoder whose attention is the mask."""

from ovsl.methods.zegclip.module import ZegCLIP

__all__ = ["ZegCLIP"]
