"""DenseCLIP: language-guided dense prediction with context-aware prompting."""

from ovsl.methods.denseclip.module import DenseCLIP
from ovsl.methods.denseclip.network import ContextDecoderSizes, DenseCLIPSizes

__all__ = ["ContextDecoderSizes", "DenseCLIP", "DenseCLIPSizes"]
