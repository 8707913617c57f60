"""Names of the official release (github.com/raoyongming/DenseCLIP) -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ovsl.methods.denseclip.module import DenseCLIP
from ovsl.methods.release import load_release, rename_by_rules

# Official pattern on the left, ours on the right; the first that matches names the tensor.
NAMES = (
    (r"contexts", r"contexts.contexts"),
    (r"gamma", r"network.gamma"),
    (r"backbone\.attnpool\.(.*)", r"network.encoder.pool.\1"),
    (r"backbone\.fpn1\.(.*)", r"network.encoder.scales.0.\1"),
    (r"backbone\.fpn2\.(.*)", r"network.encoder.scales.1.\1"),
    (r"backbone\.fpn3\.(.*)", r"network.encoder.scales.2.\1"),
    (r"backbone\.fpn4\.(.*)", r"network.encoder.scales.3.\1"),
    (r"backbone\.(.*)", r"network.encoder.visual.\1"),
    (r"text_encoder\.(.*)", r"clip.model.\1"),
    (r"context_decoder\.(.*)", r"network.context_decoder.\1"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(.*)", r"network.neck.lateral.\1.\2"),
    (r"neck\.fpn_convs\.(\d+)\.conv\.(.*)", r"network.neck.output.\1.\2"),
    (r"decode_head\.conv_seg\.(.*)", r"network.head.classifier.\1"),
    # Upsampling modules sit at the odd places of a branch.
    (r"decode_head\.scale_heads\.(\d+)\.0\.(.*)", r"network.head.branches.\1.0.\2"),
    (r"decode_head\.scale_heads\.(\d+)\.2\.(.*)", r"network.head.branches.\1.1.\2"),
    (r"decode_head\.scale_heads\.(\d+)\.4\.(.*)", r"network.head.branches.\1.2.\2"),
)
BLOCK_PARTS = {"conv.": "0.", "bn.": "1."}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to the names of :class:`DenseCLIP`; half precision becomes float32.

    Args:
        state_dict: The official ``state_dict``.

    Raises:
        InputError: A name that no rule knows.
    """
    return rename_by_rules("DenseCLIP", state_dict, NAMES, adjust=_number_block_parts)


def _number_block_parts(name: str) -> str:
    if not name.startswith("network.head.branches."):
        return name
    return re.sub(r"(conv|bn)\.(?=\w+$)", lambda match: BLOCK_PARTS[match[0]], name)


def convert(state_dict: Mapping[str, Tensor], module: DenseCLIP) -> None:
    """Load an official state dict into a freshly built module.

    The release holds the text tower with its first 13 positions only. Its weights have to be those of the CLIP that
    the module stands on; where that one is random they are loaded.

    Args:
        state_dict: The official ``state_dict``.
        module: The module, built with the settings of the checkpoint.

    Raises:
        InputError: With what is missing, left over, of another shape, or of another CLIP.
    """
    found = rename(state_dict)
    # `attn_mask` is no weight; the temperature of the contrastive training is not used and not released.
    found.pop("clip.model.attn_mask", None)
    unused = ("clip.model.logit_scale", "clip.model.attn_mask")
    expected = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name not in unused}
    position = "clip.model.positional_embedding"
    if position in found:
        expected[position] = expected[position][: len(found[position])]
    check = "clip.model, num_classes, language_guidance, input_resolution and num_contexts"
    load_release(module, found, expected, check, text_tower_optional=True)
