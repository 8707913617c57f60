"""Names of the official FC-CLIP release (``bytedance/fc-clip``) brought to ours."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.fc_clip.module import FCCLIP
from ovsl.vocabulary import Vocabulary

CLIP_PREFIX = "backbone.clip_model."
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


def rename(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
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


def convert(state_dict: dict[str, Tensor], module: FCCLIP) -> None:
    """Load an official release into a freshly built module.

    The release carries the frozen CLIP's image tower, and some files its text tower. They are compared with the CLIP
    that the module was built on, which has to be the same; what is absent from the file is that CLIP's already.

    Args:
        state_dict: The official state dict (the ``model`` entry of a released file).
        module: Built with the sizes and the CLIP of the release.

    Raises:
        InputError: Weights are missing, unexpected or of another shape, or the module's CLIP is another one.
    """
    renamed = rename(state_dict)
    trained = {key.removeprefix("network."): value for key, value in renamed.items() if key.startswith("network.")}
    frozen = {key.removeprefix("clip.model."): value for key, value in renamed.items() if key.startswith("clip.")}
    expected, clip = module.network.state_dict(), module.clip.model.state_dict()
    missing = sorted(expected.keys() - trained.keys())
    unexpected = sorted(
        [key for key in renamed if not key.startswith(("network.", "clip."))]
        + [f"network.{key}" for key in trained.keys() - expected.keys()]
        + [f"clip.model.{key}" for key in frozen.keys() - clip.keys()]
    )
    wrong = sorted(key for key in trained.keys() & expected.keys() if trained[key].shape != expected[key].shape)
    if missing or unexpected or wrong:
        raise InputError(
            f"The file does not fit this FCCLIP: missing {missing[:5]} ({len(missing)}), unexpected {unexpected[:5]} "
            f"({len(unexpected)}), of another shape {wrong[:5]} ({len(wrong)}); set model.clip, model.pixel_decoder "
            "and model.mask_decoder to those of the release."
        )
    differing = sorted(key for key, value in frozen.items() if not _same(value, clip[key]))
    if differing:
        raise InputError(
            f"The file was trained on another CLIP than {module.clip.name!r} ({module.clip.pretrained}): "
            f"{len(differing)} of {len(frozen)} tensors differ ({', '.join(differing[:3])} ...); "
            "set model.clip to match."
        )
    module.network.load_state_dict(trained)
    training_classes = state_dict.get("criterion.empty_weight")
    released = Vocabulary.load("coco_panoptic_133")
    if training_classes is not None and len(training_classes) == len(released) + 1:
        # Every released file was trained on this vocabulary; it decides which test classes count as seen.
        module.training_vocabulary = released


def _same(found: Tensor, own: Tensor) -> bool:
    if found.shape != own.shape:
        return False
    # Released towers went through half precision at most.
    return torch.allclose(found.to(own), own, rtol=2e-3, atol=1e-5)
