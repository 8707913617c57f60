"""LSeg: language-driven semantic segmentation."""

from ovsl.methods.lseg.module import LSeg

__all__ = ["LSeg"]
