"""Names of the official release (github.com/ZiqinZhou66/ZegCLIP) -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.layers import interpolate_positions
from ovsl.methods.release import fillable, load_release, rename_by_rules
from ovsl.methods.zegclip.module import ZegCLIP

NAMES = (
    (r"backbone\.(prompt_.*|deep_prompt_.*)", r"network.encoder.\1"),
    (r"decode_head\.q_proj\.(.*)", r"network.decoder.q_proj.\1"),
    (r"decode_head\.decoder_1\.layers\.(.*)", r"network.decoder.layers.\1"),
    (r"backbone\.(.*)", r"clip.model.visual.\1"),
    (r"text_encoder\.(.*)", r"clip.model.\1"),
)

DROPPED = (
    # Class weights of a criterion that the loss never reads.
    r"decode_head\.loss_decode\.criterion\.empty_weight",
)

# Entries of `empty_weight` (one more than the classes in training) -> vocabulary, split, templates of the releases.
RELEASES = {
    16: ("pascal_voc_20", "zero_shot_15_5", "single"),
    21: ("pascal_voc_20", None, "single"),
    157: ("coco_stuff_171", "zero_shot_156_15", "zegclip_15"),
    172: ("coco_stuff_171", None, "zegclip_15"),
}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to the names of `ZegCLIP`; half precision becomes float32.

    Raises:
        InputError: A name that no rule knows.
    """
    return rename_by_rules("ZegCLIP", state_dict, NAMES, DROPPED)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the published checkpoints off the tensors, for a conversion without a configuration.

    The weights of the self-trained and the fully supervised models look the same; both are taken for the latter, which
    gives the same label maps.

    Returns:
        `init_args` of `ZegCLIP`, and `vocabulary` and `split` that it was trained on.

    Raises:
        InputError: A checkpoint that is none of the published ones.
    """
    classes = state_dict.get("decode_head.loss_decode.criterion.empty_weight")
    conv1, prompts = state_dict.get("backbone.conv1.weight"), state_dict.get("backbone.prompt_embeddings")
    if classes is None or prompts is None or conv1 is None or conv1.shape[::2] != (768, 16):
        raise InputError("This is none of the published ZegCLIP checkpoints; give its settings with -c CONFIG.")
    if len(classes) not in RELEASES:
        raise InputError(
            f"A ZegCLIP checkpoint for {len(classes) - 1} classes is none of the published ones; give its settings "
            "with -c CONFIG, and --vocabulary and --split."
        )
    vocabulary, split, templates = RELEASES[len(classes)]
    init_args = {
        "clip": {"model": "ViT-B-16", "pretrained": "openai"},
        "sizes": {"num_prompts": prompts.shape[1]},
        "templates": templates,
    }
    return {"init_args": init_args, "vocabulary": vocabulary, "split": split}


def convert(state_dict: Mapping[str, Tensor], module: ZegCLIP) -> None:
    """Load an official state dict into a freshly built module.

    CLIP weights that train with the module are loaded. Frozen ones have to be those that the module stands on already;
    where it was built with random CLIP weights they are loaded as well.

    Args:
        state_dict: The official state dict.
        module: Built with the settings of the checkpoint.

    Raises:
        InputError: With what is unknown, missing, left over, of another shape, or of another CLIP.
    """
    found = rename(state_dict)
    if not module.network.encoder.has_prompt_norm:
        # Shallow prompts: the official module has the norm, but its forward pass never gets there.
        found = {name: t for name, t in found.items() if not name.startswith("network.encoder.prompt_norm.")}
    # The temperature of the contrastive training is used nowhere here and not released.
    expected = fillable(module, unused=["clip.model.logit_scale"])
    position = "clip.model.visual.positional_embedding"
    own, theirs = expected[position], found.get(position)
    compared = module.clip.pretrained is not None and not own.requires_grad
    if compared and theirs is not None and own.shape != theirs.shape:
        # A release holds the positions of its training size, made once from CLIP's.
        side = int((theirs.shape[0] - 1) ** 0.5)
        expected[position] = interpolate_positions(own.detach(), (side, side), "bilinear")
    check = "model.clip and model.sizes"
    load_release(module, found, expected, check, text_tower_optional=True)
