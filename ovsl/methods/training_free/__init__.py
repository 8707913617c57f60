"""The training-free line: SCLIP, NACLIP, ClearCLIP, ProxyCLIP, CorrCLIP."""

from ovsl.methods.training_free.last_block import LastBlock, TokenAttention
from ovsl.methods.training_free.module import TrainingFree
from ovsl.methods.training_free.proxy import ColorProxy, DINOProxy, ProxyAttention, ProxyModel
from ovsl.methods.training_free.region_correlation import RegionCorrelation

__all__ = [
    "ColorProxy",
    "DINOProxy",
    "LastBlock",
    "ProxyAttention",
    "ProxyModel",
    "RegionCorrelation",
    "TokenAttention",
    "TrainingFree",
]
