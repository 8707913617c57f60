"""Weights of the official release (github.com/MendelXu/SAN): ``san_vit_b_16.pth``, ``san_vit_large_14.pth``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.release import load_release
from ovsl.methods.san.module import SAN

"""Frozen CLIP weights may have gone through half precision."""

# Width and patch size of CLIP -> the CLIP of the published checkpoint, and what its network does not share with B/16.
RELEASES: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {
    (768, 16): ("ViT-B-16", {}),
    (1024, 14): (
        "ViT-L-14-336",
        {"num_shallow_blocks": 18, "clip_scale": 0.7, "fusion": {0: 0, 1: 6, 2: 12, 3: 18}},
    ),
}

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


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the published checkpoints, read off their tensors, for a conversion without a configuration.

    Args:
        state_dict: The official state dict.

    Returns:
        ``init_args`` of :class:`SAN`, and ``vocabulary`` and ``split`` that it was trained on.

    Raises:
        InputError: A checkpoint that is none of the published ones.
    """
    conv1 = state_dict.get("clip_visual_extractor.conv1.weight")
    queries = state_dict.get(_SIDE + "query_embed")
    if conv1 is None or queries is None or (conv1.shape[0], conv1.shape[2]) not in RELEASES:
        raise InputError("This is none of the published SAN checkpoints; give its settings with -c CONFIG.")
    model, sizes = RELEASES[conv1.shape[0], conv1.shape[2]]
    init_args = {
        "clip": {"model": model, "pretrained": "openai"},
        "network": {"num_queries": queries.shape[1], "width": queries.shape[2], **sizes},
    }
    return {"init_args": init_args, "vocabulary": "coco_stuff_171", "split": None}


def convert(state_dict: Mapping[str, Tensor], module: SAN) -> None:
    """Load an official release into a freshly built module.

    The release holds the whole frozen CLIP. Where the module was built on pretrained CLIP weights they have to be the
    same; where it was built with random ones they are loaded.

    Args:
        state_dict: The official state dict (the ``model`` entry of a released file).
        module: Built with the sizes and the CLIP of the release.

    Raises:
        InputError: Weights are missing, unexpected or of another shape, or the module's CLIP is another one.
    """
    load_release(module, rename(state_dict), dict(module.named_parameters()), "model.clip and model.network")
