"""Debug runs."""

from lightning.pytorch import Trainer


def is_debug_run(trainer: Trainer) -> bool:
    """Whether the run is a `fast_dev_run`, which leaves nothing on disk."""
    return bool(getattr(trainer, "fast_dev_run", False))
