"""The loader of whole batches, and what its workers do."""

import signal
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from ovsl.errors import InputError

# Seconds that a worker lives on after a SIGTERM.
WORKER_GRACE = 30


class SegmentationLoader(DataLoader):
    """Loader of whole batches that leaves out skipped ones and raises the errors of its workers as they are.

    A worker's exception would otherwise reach the user with the worker's traceback inside its message.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Batches as the dataset made them."""
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            if batch is not None:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. Tells Lightning that this loader can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore, see `state_dict`."""


def as_made(batch: Any) -> Any:
    """Collate function that leaves a batch as the dataset made it; the default one turns tuples into lists."""
    return batch


def one_thread(worker_id: int) -> None:
    """Restrict a worker to one thread, since workers are the parallelism, and let the main process end it.

    A signal to the whole process group must not take the workers from a main process that is to save first.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
