"""Numbers of the host on their way to a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def send(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Copy numbers to a device without waiting for it: from pinned memory, where the device is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
