"""Names of the official release (github.com/raoyongming/DenseCLIP) -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.denseclip.module import DenseCLIP
from ovsl.methods.release import fillable, load_release, rename_by_rules

NAMES = (
    (r"contexts", r"contexts.contexts"),
    (r"gamma", r"network.gamma"),
    (r"backbone\.attnpool\.(.*)", r"network.encoder.pool.\1"),
    (r"backbone\.fpn(\d)\.(.*)", r"network.encoder.scales.{\1-1}.\2"),
    (r"backbone\.(.*)", r"network.encoder.visual.\1"),
    (r"text_encoder\.(.*)", r"clip.model.\1"),
    (r"context_decoder\.(.*)", r"network.context_decoder.\1"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(.*)", r"network.neck.lateral.\1.\2"),
    (r"neck\.fpn_convs\.(\d+)\.conv\.(.*)", r"network.neck.output.\1.\2"),
    (r"decode_head\.conv_seg\.(.*)", r"network.head.classifier.\1"),
    # Upsampling modules sit at the odd places of a branch there.
    (r"decode_head\.scale_heads\.(\d+)\.(\d+)\.conv\.(.*)", r"network.head.branches.\1.{\2/2}.0.\3"),
    (r"decode_head\.scale_heads\.(\d+)\.(\d+)\.bn\.(.*)", r"network.head.branches.\1.{\2/2}.1.\3"),
)

DROPPED = (
    # The causal mask is no weight.
    r"text_encoder\.attn_mask",
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to the names of `DenseCLIP`; half precision becomes float32.

    Raises:
        InputError: A name that no rule knows.
    """
    return rename_by_rules("DenseCLIP", state_dict, NAMES, DROPPED)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Refuse: the tensors do not tell the names of the classes that the contexts were trained with.

    Raises:
        InputError: Always, with where the settings of the published checkpoints are.
    """
    raise InputError(
        "A DenseCLIP checkpoint does not tell the class names that it was trained with; give its settings with "
        "-c CONFIG, for a published one experiments/denseclip/BACKBONE.yaml."
    )


def convert(state_dict: Mapping[str, Tensor], module: DenseCLIP) -> None:
    """Load an official state dict into a freshly built module.

    The release holds the text tower with its first 13 positions only. Its weights have to be those of the CLIP that
    the module stands on; where that one is random they are loaded.

    Args:
        state_dict: The official state dict.
        module: Built with the settings of the checkpoint.

    Raises:
        InputError: With what is unknown, missing, left over, of another shape, or of another CLIP.
    """
    found = rename(state_dict)
    # The temperature of the contrastive training is used nowhere here and not released.
    expected = fillable(module, unused=["clip.model.logit_scale"])
    position = "clip.model.positional_embedding"
    if position in found:
        expected[position] = expected[position][: len(found[position])]
    check = "model.clip, model.num_classes, model.language_guidance and model.sizes"
    load_release(module, found, expected, check, text_tower_optional=True)
