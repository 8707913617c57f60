"""Names of the official release (github.com/bytedance/fc-clip) -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.fc_clip.module import FCCLIP
from ovsl.methods.release import fillable, load_release, rename_by_rules

CLIP_PREFIX = "backbone.clip_model."

# Channels of the first stage (ConvNeXt: of the stem) and embedding size -> CLIP of the published checkpoints.
RELEASES = {
    (192, 768): ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"),
    (256, 1024): ("RN50", "openai"),
    (256, 512): ("RN101", "openai"),
    (320, 640): ("RN50x4", "openai"),
    (384, 768): ("RN50x16", "openai"),
    (512, 1024): ("RN50x64", "openai"),
}

_PIXEL, _PREDICTOR = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
_ENCODER = _PIXEL + r"transformer\.encoder\.layers\.(\d+)\."
_ATTENTION = _PREDICTOR + r"transformer_(cross|self)_attention_layers\.(\d+)\."
_FEED_FORWARD = _PREDICTOR + r"transformer_ffn_layers\.(\d+)\."
NAMES = (
    (r"void_embedding\.weight", r"network.void_embedding"),
    (_PREDICTOR + r"logit_scale", r"network.logit_scale"),
    (_PIXEL + r"input_proj\.(\d+)\.(.+)", r"network.pixel_decoder.input_projections.\1.\2"),
    (_PIXEL + r"transformer\.level_embed", r"network.pixel_decoder.level_embedding"),
    (_PIXEL + r"adapter_1\.weight", r"network.pixel_decoder.lateral.0.weight"),
    (_PIXEL + r"adapter_1\.norm\.(.+)", r"network.pixel_decoder.lateral.1.\1"),
    (_PIXEL + r"layer_1\.weight", r"network.pixel_decoder.output.0.weight"),
    (_PIXEL + r"layer_1\.norm\.(.+)", r"network.pixel_decoder.output.1.\1"),
    (_PIXEL + r"mask_features\.(.+)", r"network.pixel_decoder.mask_features.\1"),
    (_PREDICTOR + r"query_feat\.weight", r"network.mask_decoder.query_features"),
    (_PREDICTOR + r"query_embed\.weight", r"network.mask_decoder.query_positions"),
    (_PREDICTOR + r"level_embed\.weight", r"network.mask_decoder.level_embedding"),
    (_PREDICTOR + r"input_proj\.(\d+)\.(.+)", r"network.mask_decoder.source_projections.\1.\2"),
    (_PREDICTOR + r"decoder_norm\.(.+)", r"network.mask_decoder.norm.\1"),
    (_PREDICTOR + r"_mask_pooling_proj\.(.+)", r"network.class_head.pooling_projection.\1"),
    (
        _ENCODER + r"self_attn\.(sampling_offsets|attention_weights)\.(.+)",
        r"network.pixel_decoder.layers.\1.attention.\2.\3",
    ),
    (_ENCODER + r"self_attn\.(value|output)_proj\.(.+)", r"network.pixel_decoder.layers.\1.attention.\2_projection.\3"),
    (_ENCODER + r"norm1\.(.+)", r"network.pixel_decoder.layers.\1.attention_norm.\2"),
    (_ENCODER + r"linear1\.(.+)", r"network.pixel_decoder.layers.\1.feed_forward.0.\2"),
    (_ENCODER + r"linear2\.(.+)", r"network.pixel_decoder.layers.\1.feed_forward.2.\2"),
    (_ENCODER + r"norm2\.(.+)", r"network.pixel_decoder.layers.\1.feed_forward_norm.\2"),
    (_ATTENTION + r"(?:multihead|self)_attn\.(.+)", r"network.mask_decoder.layers.\2.\1_attention.\3"),
    (_ATTENTION + r"norm\.(.+)", r"network.mask_decoder.layers.\2.\1_attention_norm.\3"),
    (_FEED_FORWARD + r"linear1\.(.+)", r"network.mask_decoder.layers.\1.feed_forward.0.\2"),
    (_FEED_FORWARD + r"linear2\.(.+)", r"network.mask_decoder.layers.\1.feed_forward.2.\2"),
    (_FEED_FORWARD + r"norm\.(.+)", r"network.mask_decoder.layers.\1.feed_forward_norm.\2"),
    # Layers of a perceptron alternate with activations here.
    (_PREDICTOR + r"mask_embed\.layers\.(\d+)\.(.+)", r"network.mask_decoder.mask_embedding.{2*\1}.\2"),
    (_PREDICTOR + r"class_embed\.layers\.(\d+)\.(.+)", r"network.class_head.class_embedding.{2*\1}.\2"),
    (r"backbone\.clip_model\.(.+)", r"clip.model.\1"),
)

DROPPED = (
    # Not weights: the causal mask of the text tower, and the class weights 1 ... 1, 0.1 of the loss.
    r"backbone\.clip_model\.attn_mask",
    r"criterion\.empty_weight",
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to the names of `FCCLIP`; half precision becomes float32.

    Raises:
        InputError: A name that no rule knows.
    """
    return rename_by_rules("FCCLIP", state_dict, NAMES, DROPPED)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the published checkpoints off the tensors, for a conversion without a configuration.

    Returns:
        `init_args` of `FCCLIP`, and `vocabulary` and `split` that it was trained on.

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
        "sizes": {"mask_decoder": {"num_queries": len(queries)}},
        "ensemble_on_valid_masks": convnext is None,
    }
    return {"init_args": init_args, "vocabulary": "coco_panoptic_133", "split": None}


def convert(state_dict: Mapping[str, Tensor], module: FCCLIP) -> None:
    """Load an official state dict into a freshly built module.

    The release carries the frozen CLIP's image tower, and some files its text tower. Where the module was built on
    pretrained CLIP weights they have to be the same, and what the file lacks is there already; where it was built with
    random ones they are loaded, and the file has to hold them all.

    Args:
        state_dict: The official state dict.
        module: Built with the settings of the checkpoint.

    Raises:
        InputError: With what is unknown, missing, left over, of another shape, or of another CLIP.
    """
    check = "model.clip and model.sizes"
    optional = module.clip.pretrained is not None
    load_release(module, rename(state_dict), fillable(module), check, text_tower_optional=optional)
