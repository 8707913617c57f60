"""Names of the official release (github.com/isl-org/lang-seg) -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.lseg.module import LSeg
from ovsl.methods.release import fillable, load_release, rename_by_rules

# Levels count from 1 there.
NAMES = (
    (r"pretrained\.model\.(.*)", r"network.encoder.vit.\1"),
    (r"pretrained\.act_postprocess(\d)\.0\.project\.0\.(.*)", r"network.encoder.readout.{\1-1}.0.\2"),
    (r"pretrained\.act_postprocess(\d)\.3\.(.*)", r"network.encoder.reassemble.{\1-1}.0.\2"),
    (r"pretrained\.act_postprocess(\d)\.4\.(.*)", r"network.encoder.reassemble.{\1-1}.1.\2"),
    (r"pretrained\.layer1\.0\.(.*)", r"network.encoder.resnet.conv1.\1"),
    (r"pretrained\.layer1\.1\.(.*)", r"network.encoder.resnet.bn1.\1"),
    (r"pretrained\.layer1\.4\.(.*)", r"network.encoder.resnet.layer1.\1"),
    (r"pretrained\.layer([234])\.(.*)", r"network.encoder.resnet.layer\1.\2"),
    (r"scratch\.layer(\d)_rn\.(.*)", r"network.decoder.lateral.{\1-1}.\2"),
    (r"scratch\.refinenet(\d)\.out_conv\.(.*)", r"network.decoder.fusion.{\1-1}.output.\2"),
    (r"scratch\.refinenet(\d)\.resConfUnit1\.(.*)", r"network.decoder.fusion.{\1-1}.skip.\2"),
    (r"scratch\.refinenet(\d)\.resConfUnit2\.(.*)", r"network.decoder.fusion.{\1-1}.refine.\2"),
    (r"scratch\.head1\.(.*)", r"network.head.\1"),
    (r"scratch\.head_block\.depthwise\.depthwise\.(.*)", r"network.regularizer.depthwise.\1"),
    (r"clip_pretrained\.(.*)", r"clip.model.\1"),
)

DROPPED = (
    # No output depends on these.
    r"pretrained\.model\.(norm|head)\..*",
    r"scratch\.refinenet4\.resConfUnit1\..*",
    # CLIP's image tower is stored, but not used; nor is the temperature of the contrastive training.
    r"clip_pretrained\.visual\..*",
    r"clip_pretrained\.logit_scale",
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to the names of `LSeg`; half precision becomes float32.

    Raises:
        InputError: A name that no rule knows.
    """
    own_names = {name.removeprefix("net."): tensor for name, tensor in state_dict.items()}
    return rename_by_rules("LSeg", own_names, NAMES, DROPPED)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the released demo model off the tensors, for a conversion without a configuration.

    It was trained on a union of seven datasets whose label list was not released.

    Returns:
        `init_args` of `LSeg`, and `vocabulary` and `split` that it was trained on: unknown.

    Raises:
        InputError: Another checkpoint.
    """
    shapes = {name.removeprefix("net."): tuple(tensor.shape) for name, tensor in state_dict.items()}
    head, positions = shapes.get("scratch.head1.weight"), shapes.get("pretrained.model.pos_embed")
    if (
        head != (512, 256, 1, 1)
        or positions != (1, 577, 1024)
        or "scratch.head_block.depthwise.depthwise.bias" in shapes
    ):
        raise InputError("This is not the released LSeg model; give the settings of the checkpoint with -c CONFIG.")
    init_args = {
        "clip": {"model": "ViT-B-32", "pretrained": "openai"},
        "backbone": "vit_large_patch16_384",
        "matching": "float16",
    }
    return {"init_args": init_args, "vocabulary": None, "split": None}


def convert(state_dict: Mapping[str, Tensor], module: LSeg) -> None:
    """Load an official state dict into a freshly built module.

    The release holds the whole CLIP in half precision. Its text tower has to be that of the CLIP that the module stands
    on; where that one is random it is loaded.

    Args:
        state_dict: The official state dict.
        module: Built with the settings of the checkpoint.

    Raises:
        InputError: With what is unknown, missing, left over, of another shape, or of another CLIP.
    """
    check = "model.clip, model.backbone, model.sizes and model.regularizer"
    expected = fillable(module, unused=["clip.model.logit_scale"])
    load_release(module, rename(state_dict), expected, check, text_tower_optional=True)
