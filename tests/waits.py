"""Counts, on the CPU, the operations for which the host of an accelerator would wait."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Numbers read from a tensor, sizes that depend on its values, and copies of the host's numbers.
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "bincount",
    "unique_dim",
    "_unique2",
    "masked_select",
    "equal",
}


class Waits(TorchDispatchMode):
    """What would wait inside the block, had every tensor been on an accelerator.

    Attributes:
        places: What waits and the line of the package that asks for it, one for each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self._patches = ExitStack()

    def __enter__(self) -> Waits:
        """Also watch what does not dispatch: tensors made of the host's numbers, and moves between devices."""
        for owner, name in (
            (torch, "tensor"),
            (torch, "from_numpy"),
            (torch.Tensor, "cpu"),
            (torch.Tensor, "tolist"),
            (torch.Tensor, "new_tensor"),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, self._watched(name, getattr(owner, name))))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop watching."""
        super().__exit__(*exception)
        self._patches.close()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        boolean = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if name in _WAITING or boolean or (name == "repeat_interleave" and (keywords or {}).get("output_size") is None):
            self._note(name)
        return function(*arguments, **(keywords or {}))

    def _watched(self, name: str, original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self._note(name)
            return original(*arguments, **keywords)

        return call

    def _note(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/ovsl/" in frame.filename]
        if frames and frames[-1].filename.endswith("losses/transfer.py"):
            return  # goes out of pinned memory
        where = f"{frames[-1].filename.split('/ovsl/')[-1]}:{frames[-1].lineno}" if frames else "elsewhere"
        self.places.append(f"{name} in {where}")
