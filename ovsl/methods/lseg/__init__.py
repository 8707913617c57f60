"""LSeg: language-driven semantic segmentation."""

from ovsl.methods.lseg.module import LSeg
from ovsl.methods.lseg.network import LSegSizes

__all__ = ["LSeg", "LSegSizes"]
