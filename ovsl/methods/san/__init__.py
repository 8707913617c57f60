"""SAN: side adapter network."""

from ovsl.methods.san.module import SAN
from ovsl.methods.san.network import SANSizes, SideAdapterNetwork

__all__ = ["SAN", "SANSizes", "SideAdapterNetwork"]
