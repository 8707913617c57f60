"""Weights of the official release (github.com/MendelXu/SAN): ``san_vit_b_16.pth``, ``san_vit_large_14.pth``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ovsl.errors import InputError

_SIDE = "side_adapter_network."
RULES: tuple[tuple[str, str], ...] = (
    # Official name on the left, ours on the right; the first rule that matches a whole name counts.
    (_SIDE + r"query_embed", "network.side_network.query_embedding"),
    (_SIDE + r"query_pos_embed", "network.side_network.query_position_embedding"),
    (_SIDE + r"vit_model\.pos_embed", "network.side_network.position_embedding"),
    (_SIDE + r"vit_model\.patch_embed\.proj\.(\w+)", r"network.side_network.patch_embedding.\1"),
    (_SIDE + r"vit_model\.blocks\.(.+)", r"network.side_network.blocks.\1"),
    (_SIDE + r"fusion_layers\.layer_(\d+)\.input_proj\.0\.(\w+)", r"network.side_network.fusions.\1.norm.\2"),
    (_SIDE + r"fusion_layers\.layer_(\d+)\.input_proj\.1\.(\w+)", r"network.side_network.fusions.\1.projection.\2"),
    (_SIDE + r"mask_decoder\.query_mlp\.layers\.(\d+)\.(\w+)", r"network.mask_decoder.query_mlp.<\1>.\2"),
    (_SIDE + r"mask_decoder\.pix_mlp\.layers\.(\d+)\.(\w+)", r"network.mask_decoder.pixel_mlp.<\1>.\2"),
    (_SIDE + r"mask_decoder\.attn_mlp\.layers\.(\d+)\.(\w+)", r"network.mask_decoder.bias_mlp.<\1>.\2"),
    (_SIDE + r"mask_decoder\.bias_scaling\.(\w+)", r"network.mask_decoder.bias_scaling.\1"),
    (r"ov_classifier\.bg_embed", "no_object_embedding"),
    (r"clip_visual_extractor\.resblocks\.(.+)", r"clip.model.visual.transformer.resblocks.\1"),
    (r"clip_visual_extractor\.(.+)", r"clip.model.visual.\1"),
    (r"clip_rec_head\.resblocks\.(\d+)\.(.+)", r"clip.model.visual.transformer.resblocks.[\1].\2"),
    (r"clip_rec_head\.(.+)", r"clip.model.visual.\1"),
    # Not weights: the causal mask of the text tower, and the class weights 1 ... 1, 0.1 of the loss.
    (r"ov_classifier\.attn_mask", ""),
    (r"criterion\.empty_weight", ""),
    (r"ov_classifier\.(.+)", r"clip.model.\1"),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give official weights our names and shapes.

    Args:
        state_dict: Official names, without the ``model`` level of the released file.

    Raises:
        InputError: A name that no rule knows.
    """
    numbers = [re.match(r"clip_visual_extractor\.resblocks\.(\d+)\.", name) for name in state_dict]
    num_shallow_blocks = 1 + max((int(match[1]) for match in numbers if match), default=-1)
    renamed = {}
    for name, tensor in state_dict.items():
        target = next((match.expand(new) for old, new in RULES if (match := re.fullmatch(old, name))), None)
        if target is None:
            raise InputError(f"The file holds the weight {name!r}, which SAN does not have; is it a SAN checkpoint?")
        if not target:
            continue
        # MLP layers alternate with activations here; recognition blocks follow the shallow ones in one CLIP.
        target = re.sub(r"<(\d+)>", lambda match: str(2 * int(match[1])), target)
        target = re.sub(r"\[(\d+)\]", lambda match: str(num_shallow_blocks + int(match[1])), target)
        # What is a 1x1 convolution there is a linear layer on tokens here.
        one_by_one = tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and target.startswith("network.")
        renamed[target] = tensor.flatten(1) if one_by_one else tensor
    return renamed


@torch.no_grad()
def convert(state_dict: Mapping[str, Any], module: torch.nn.Module) -> None:
    """Load official weights into a freshly built :class:`~ovsl.methods.san.SAN`.

    The frozen CLIP of the release is compared with the module's, not loaded: our checkpoints name their CLIP.

    Args:
        state_dict: The released file's content, or its ``model`` entry.
        module: Where the weights go.

    Raises:
        InputError: Weights are missing, unexpected or of another shape, or the release stands on another CLIP.
    """
    found = rename(state_dict.get("model", state_dict))
    expected = dict(module.named_parameters())
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape]
    if missing or unexpected or shapes:
        raise InputError(
            "The official weights do not fit this configuration of SAN; "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}; "
            f"of another shape: {', '.join(sorted(shapes)) or 'none'}."
        )
    frozen = [name for name in expected if name.startswith("clip.") and not expected[name].requires_grad]
    other = [name for name in frozen if not torch.allclose(expected[name], found[name].to(expected[name]), atol=1e-5)]
    if other:
        raise InputError(
            f"The official weights stand on another CLIP than the one loaded: {len(other)} of {len(frozen)} frozen "
            f"weights differ, {other[0]} the first; set model.clip to the release's CLIP (OpenAI's weights)."
        )
    for name in expected.keys() - set(frozen):
        expected[name].copy_(found[name])
