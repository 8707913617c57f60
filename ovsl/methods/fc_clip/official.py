"""Names of the official FC-CLIP release (``bytedance/fc-clip``) brought to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.fc_clip.module import FCCLIP
from ovsl.methods.release import load_release

CLIP_PREFIX = "backbone.clip_model."
# Weights went through half precision at most.

# Channels of the first stage (ConvNeXt: of the stem) and embedding size -> CLIP of the published checkpoints.
RELEASES = {
    (192, 768): ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"),
    (256, 1024): ("RN50", "openai"),
    (256, 512): ("RN101", "openai"),
    (320, 640): ("RN50x4", "openai"),
    (384, 768): ("RN50x16", "openai"),
    (512, 1024): ("RN50x64", "openai"),
}
NAMES = (
    # official key -> ours
    (r"void_embedding\.weight", r"void_embedding"),
    (r"sem_seg_head\.predictor\.logit_scale", r"logit_scale"),
    (r"sem_seg_head\.pixel_decoder\.input_proj\.(\d+)\.(.+)", r"pixel_decoder.input_projections.\1.\2"),
    (r"sem_seg_head\.pixel_decoder\.transformer\.level_embed", r"pixel_decoder.level_embedding"),
    (r"sem_seg_head\.pixel_decoder\.adapter_1\.weight", r"pixel_decoder.lateral.0.weight"),
    (r"sem_seg_head\.pixel_decoder\.adapter_1\.norm\.(.+)", r"pixel_decoder.lateral.1.\1"),
    (r"sem_seg_head\.pixel_decoder\.layer_1\.weight", r"pixel_decoder.output.0.weight"),
    (r"sem_seg_head\.pixel_decoder\.layer_1\.norm\.(.+)", r"pixel_decoder.output.1.\1"),
    (r"sem_seg_head\.pixel_decoder\.mask_features\.(.+)", r"pixel_decoder.mask_features.\1"),
    (r"sem_seg_head\.predictor\.query_feat\.weight", r"mask_decoder.query_features"),
    (r"sem_seg_head\.predictor\.query_embed\.weight", r"mask_decoder.query_positions"),
    (r"sem_seg_head\.predictor\.level_embed\.weight", r"mask_decoder.level_embedding"),
    (r"sem_seg_head\.predictor\.input_proj\.(\d+)\.(.+)", r"mask_decoder.source_projections.\1.\2"),
    (r"sem_seg_head\.predictor\.decoder_norm\.(.+)", r"mask_decoder.norm.\1"),
    (r"sem_seg_head\.predictor\._mask_pooling_proj\.(.+)", r"class_head.pooling_projection.\1"),
)
ENCODER_LAYER = r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.(.+)"
ENCODER_PARTS = {
    "self_attn.sampling_offsets": "attention.sampling_offsets",
    "self_attn.attention_weights": "attention.attention_weights",
    "self_attn.value_proj": "attention.value_projection",
    "self_attn.output_proj": "attention.output_projection",
    "norm1": "attention_norm",
    "linear1": "feed_forward.0",
    "linear2": "feed_forward.2",
    "norm2": "feed_forward_norm",
}
DECODER_LAYER = r"sem_seg_head\.predictor\.transformer_(cross_attention|self_attention|ffn)_layers\.(\d+)\.(.+)"
DECODER_PARTS = {
    "cross_attention.multihead_attn": "cross_attention",
    "cross_attention.norm": "cross_attention_norm",
    "self_attention.self_attn": "self_attention",
    "self_attention.norm": "self_attention_norm",
    "ffn.linear1": "feed_forward.0",
    "ffn.linear2": "feed_forward.2",
    "ffn.norm": "feed_forward_norm",
}
PERCEPTRON = r"sem_seg_head\.predictor\.(mask|class)_embed\.layers\.(\d+)\.(.+)"
PERCEPTRONS = {"mask": "mask_decoder.mask_embedding", "class": "class_head.class_embedding"}


def our_name(official: str) -> str | None:
    """Name of an official parameter in :class:`~ovsl.methods.fc_clip.network.FCCLIPNetwork`; None if it has none."""
    for pattern, name in NAMES:
        if match := re.fullmatch(pattern, official):
            return match.expand(name)
    if match := re.fullmatch(ENCODER_LAYER, official):
        return _part(match[2], ENCODER_PARTS, f"pixel_decoder.layers.{match[1]}.")
    if match := re.fullmatch(DECODER_LAYER, official):
        return _part(f"{match[1]}.{match[3]}", DECODER_PARTS, f"mask_decoder.layers.{match[2]}.")
    if match := re.fullmatch(PERCEPTRON, official):
        # Between our linear layers stands a ReLU.
        return f"{PERCEPTRONS[match[1]]}.{2 * int(match[2])}.{match[3]}"
    return None


def _part(rest: str, parts: dict[str, str], prefix: str) -> str | None:
    for official, ours in parts.items():
        if rest.startswith(f"{official}."):
            return prefix + ours + rest.removeprefix(official)
    return None


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict to ours: trained weights under ``network.``, the frozen CLIP under ``clip.model.``.

    Left out by rule, since they are no weights: ``criterion.empty_weight`` (a constant of the loss) and the text
    tower's ``attn_mask``. Keys without a known place keep their name, for the caller to refuse.
    """
    renamed = {}
    for key, value in state_dict.items():
        if key == "criterion.empty_weight" or key == f"{CLIP_PREFIX}attn_mask":
            continue
        if key.startswith(CLIP_PREFIX):
            renamed["clip.model." + key.removeprefix(CLIP_PREFIX)] = value
            continue
        name = our_name(key)
        renamed[key if name is None else f"network.{name}"] = value
    return renamed


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the published checkpoints, read off their tensors, for a conversion without a configuration.

    Args:
        state_dict: The official state dict.

    Returns:
        ``init_args`` of :class:`FCCLIP`, and ``vocabulary`` and ``split`` that it was trained on.

    Raises:
        InputError: A checkpoint that is none of the published ones.
    """
    convnext = state_dict.get(f"{CLIP_PREFIX}visual.trunk.stem.0.weight")
    resnet = state_dict.get(f"{CLIP_PREFIX}visual.layer1.0.conv3.weight")
    void, queries = state_dict.get("void_embedding.weight"), state_dict.get("sem_seg_head.predictor.query_feat.weight")
    tower = convnext if convnext is not None else resnet
    if tower is None or void is None or queries is None or (len(tower), void.shape[1]) not in RELEASES:
        raise InputError("This is none of the published FC-CLIP checkpoints; give its settings with -c CONFIG.")
    model, pretrained = RELEASES[len(tower), void.shape[1]]
    init_args = {
        "clip": {"model": model, "pretrained": pretrained},
        "mask_decoder": {"num_queries": len(queries)},
        "ensemble_on_valid_masks": convnext is None,
    }
    return {"init_args": init_args, "vocabulary": "coco_panoptic_133", "split": None}


def convert(state_dict: Mapping[str, Tensor], module: FCCLIP) -> None:
    """Load an official release into a freshly built module.

    The release carries the frozen CLIP's image tower, and some files its text tower. Where the module was built on
    pretrained CLIP weights they have to be the same, and what the file lacks is there already; where it was built with
    random ones they are loaded, and the file has to hold them all.

    Args:
        state_dict: The official state dict (the ``model`` entry of a released file).
        module: Built with the sizes and the CLIP of the release.

    Raises:
        InputError: Weights are missing, unexpected or of another shape, or the module's CLIP is another one.
    """
    expected = {f"network.{name}": tensor for name, tensor in module.network.state_dict(keep_vars=True).items()}
    expected |= {f"clip.model.{name}": tensor for name, tensor in module.clip.model.state_dict(keep_vars=True).items()}
    # The number of batches behind BatchNorm's statistics is used by no forward pass.
    found, expected = (
        {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (rename(state_dict), expected)
    )
    check = "model.clip, model.pixel_decoder and model.mask_decoder"
    load_release(module, found, expected, check, text_tower_optional=module.clip.pretrained is not None)
