"""Names of the official release (github.com/wysoczanska/clip_dinoiser) -> ours: the four tensors of the heads.

FOUND's released decoder is read where it is used, see `ovsl.layers.found.load_decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.clip_dinoiser.module import CLIPDINOiser
from ovsl.methods.release import load_release, rename_by_rules

NAMES = ((r"((?:obj_proj|bkg_decoder)\.(?:weight|bias))", r"network.\1"),)

DROPPED = (
    # Files saved from the whole official module hold its frozen CLIP and its text embeddings too.
    r"clip_backbone\..*",
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to our names.

    Args:
        state_dict: The official `model_state_dict`.

    Raises:
        InputError: A name that no rule knows.
    """
    return rename_by_rules("CLIP-DINOiser", state_dict, NAMES, DROPPED)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the published checkpoint off its tensors, for a conversion without a configuration.

    Args:
        state_dict: The official `model_state_dict`.

    Returns:
        `init_args` of `CLIPDINOiser`; it was trained without classes, so there is no vocabulary.

    Raises:
        InputError: Another checkpoint.
    """
    weight = state_dict.get("obj_proj.weight")
    if weight is None or tuple(weight.shape) != (256, 768, 3, 3):
        raise InputError("This is not the published CLIP-DINOiser checkpoint; give its settings with -c CONFIG.")
    return {
        "init_args": {"clip": {"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"}},
        "vocabulary": None,
        "split": None,
    }


def convert(state_dict: Mapping[str, Tensor], module: CLIPDINOiser) -> None:
    """Load an official release into a freshly built module.

    The official loader passes over wrong names in silence; here all four tensors have to be there and fit.

    Args:
        state_dict: The official `model_state_dict`.
        module: Built with the sizes of the release.

    Raises:
        InputError: With what is missing, left over or of another shape.
    """
    expected = {f"network.{name}": tensor for name, tensor in module.network.state_dict(keep_vars=True).items()}
    load_release(module, rename(state_dict), expected, "model.sizes and model.clip")
