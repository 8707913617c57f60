"""SAN: side adapter network."""

from ovsl.methods.san.module import SAN
from ovsl.methods.san.network import SideAdapterNetwork, SideAdapterSettings

__all__ = ["SAN", "SideAdapterNetwork", "SideAdapterSettings"]
