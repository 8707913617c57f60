"""ProxyCLIP; see `tests.golden.training_free`."""

from tests.golden.training_free import INPUTS, NOT_COMPUTED, compute

__all__ = ["INPUTS", "NOT_COMPUTED", "compute"]
