"""Names of the official release (github.com/MendelXu/SAN) -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.release import fillable, load_release, rename_by_rules
from ovsl.methods.san.module import SAN

# Width and patch size of CLIP -> the CLIP of the published checkpoint, the scale of its input, and the sizes that the
# network does not share with that for B/16.
RELEASES: dict[tuple[int, int], tuple[str, float, dict[str, Any]]] = {
    (768, 16): ("ViT-B-16", 0.5, {}),
    (1024, 14): ("ViT-L-14-336", 0.7, {"num_shallow_blocks": 18, "fusion": {0: 0, 1: 6, 2: 12, 3: 18}}),
}

_SIDE = "side_adapter_network."
NAMES = (
    (_SIDE + r"query_embed", "network.side_network.query_embedding"),
    (_SIDE + r"query_pos_embed", "network.side_network.query_position_embedding"),
    (_SIDE + r"vit_model\.pos_embed", "network.side_network.position_embedding"),
    (_SIDE + r"vit_model\.patch_embed\.proj\.(\w+)", r"network.side_network.patch_embedding.\1"),
    (_SIDE + r"vit_model\.blocks\.(.+)", r"network.side_network.blocks.\1"),
    (_SIDE + r"fusion_layers\.layer_(\d+)\.input_proj\.0\.(\w+)", r"network.side_network.fusions.\1.norm.\2"),
    (_SIDE + r"fusion_layers\.layer_(\d+)\.input_proj\.1\.(\w+)", r"network.side_network.fusions.\1.projection.\2"),
    # Layers of a perceptron alternate with activations here.
    (_SIDE + r"mask_decoder\.query_mlp\.layers\.(\d+)\.(\w+)", r"network.mask_decoder.query_mlp.{2*\1}.\2"),
    (_SIDE + r"mask_decoder\.pix_mlp\.layers\.(\d+)\.(\w+)", r"network.mask_decoder.pixel_mlp.{2*\1}.\2"),
    (_SIDE + r"mask_decoder\.attn_mlp\.layers\.(\d+)\.(\w+)", r"network.mask_decoder.bias_mlp.{2*\1}.\2"),
    (_SIDE + r"mask_decoder\.bias_scaling\.(\w+)", r"network.mask_decoder.bias_scaling.\1"),
    (r"ov_classifier\.bg_embed", "no_object_embedding"),
    (r"clip_visual_extractor\.resblocks\.(.+)", r"clip.model.visual.transformer.resblocks.\1"),
    (r"clip_visual_extractor\.(.+)", r"clip.model.visual.\1"),
    # The blocks that recognise follow the shallow ones in one CLIP.
    (r"clip_rec_head\.resblocks\.(\d+)\.(.+)", r"clip.model.visual.transformer.resblocks.{\1+num_shallow_blocks}.\2"),
    (r"clip_rec_head\.(.+)", r"clip.model.visual.\1"),
    (r"ov_classifier\.(.+)", r"clip.model.\1"),
)

DROPPED = (
    # Not weights: the causal mask of the text tower, and the class weights 1 ... 1, 0.1 of the loss.
    r"ov_classifier\.attn_mask",
    r"criterion\.empty_weight",
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to the names of `SAN`; half precision becomes float32.

    Raises:
        InputError: A name that no rule knows.
    """
    numbers = [re.match(r"clip_visual_extractor\.resblocks\.(\d+)\.", name) for name in state_dict]
    num_shallow_blocks = 1 + max((int(match[1]) for match in numbers if match), default=-1)
    return rename_by_rules("SAN", state_dict, NAMES, DROPPED, num_shallow_blocks=num_shallow_blocks)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the published checkpoints off the tensors, for a conversion without a configuration.

    Returns:
        `init_args` of `SAN`, and `vocabulary` and `split` that it was trained on.

    Raises:
        InputError: A checkpoint that is none of the published ones.
    """
    conv1 = state_dict.get("clip_visual_extractor.conv1.weight")
    queries = state_dict.get(_SIDE + "query_embed")
    if conv1 is None or queries is None or (conv1.shape[0], conv1.shape[2]) not in RELEASES:
        raise InputError("This is none of the published SAN checkpoints; give its settings with -c CONFIG.")
    model, clip_scale, sizes = RELEASES[conv1.shape[0], conv1.shape[2]]
    init_args = {
        "clip": {"model": model, "pretrained": "openai"},
        "sizes": {"num_queries": queries.shape[1], "width": queries.shape[2], **sizes},
        "clip_scale": clip_scale,
    }
    return {"init_args": init_args, "vocabulary": "coco_stuff_171", "split": None}


def convert(state_dict: Mapping[str, Tensor], module: SAN) -> None:
    """Load an official state dict into a freshly built module.

    The release holds the whole frozen CLIP. Where the module was built on pretrained CLIP weights they have to be the
    same; where it was built with random ones they are loaded.

    Args:
        state_dict: The official state dict.
        module: Built with the settings of the checkpoint.

    Raises:
        InputError: With what is unknown, missing, left over, of another shape, or of another CLIP.
    """
    load_release(module, rename(state_dict), fillable(module), "model.clip and model.sizes")
