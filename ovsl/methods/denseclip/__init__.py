"""DenseCLIP: language-guided dense prediction with context-aware prompting."""

from ovsl.methods.denseclip.module import DenseCLIP

__all__ = ["DenseCLIP"]
