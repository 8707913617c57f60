"""ovsl: open-vocabulary semantic segmentation with PyTorch Lightning.

Tensor shapes in docstrings use one legend throughout:

- `B` images in a batch, `N` instances or tokens, `Q` mask queries
- `C` classes (or channels where the text says so), `D` dimensions of the joint image-text space
- `H, W` pixels of an image, `h, w` cells of a feature map or of low-resolution masks

Sizes of networks go by the same words in every method: `width`, `num_heads`, `feed_forward`, `embedding_dimension`,
`num_layers`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ovsl.api import LoadedMethod

# Albumentations would ask PyPI for its newest version whenever it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def load(source: str | Path, device: str | torch.device | None = None) -> LoadedMethod:
    """Load a method: a run directory, a checkpoint file, or a method's configuration file; see `ovsl.api.load`.

    `ovsl.load("runs/mine").with_words(["road", "sky", "car, automobile"])("photo.jpg").overlay()`
    """
    from ovsl.api import load as load_method  # here, since tables of results need no torch, whose import takes seconds

    return load_method(source, device)
