"""What a run has to know of its training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Fingerprinted(Protocol):
    """Data that can say what it is; see `ovsl.data.sources.Source`."""

    name: str

    def fingerprint(self) -> dict[str, Any]:
        """Say what data this is."""
        ...

    def pin(self, fingerprint: Mapping[str, Any]) -> None:
        """Read the data that a fingerprint was taken of."""
        ...
