"""Parts that stay in float32 under mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Turn autocast off; on the meta device, where sizes are counted and autocast is unknown, do nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
