"""Names of the official release (github.com/cvlab-kaist/CAT-Seg): `model_base.pth` and `model_large.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovsl.clip.split_attention import PROJECTIONS, pack_attention
from ovsl.errors import InputError
from ovsl.methods.cat_seg.module import CATSeg
from ovsl.methods.release import fillable, load_release, rename_by_rules

_PREDICTOR = r"sem_seg_head\.predictor\."
_TRANSFORMER = _PREDICTOR + r"transformer\."
_LAYER = _TRANSFORMER + r"layers\.(\d+)\."
_BLOCK = _LAYER + r"swin_block\.block_(\d)\."
_SPATIAL = r"network.layers.\1.spatial.blocks.{\2-1}."

# Official pattern on the left, ours on the right; the first that matches names the tensor.
NAMES = (
    (r"upsample(\d)\.(.*)", r"network.upsample.{\1-1}.\2"),
    (_PREDICTOR + r"clip_model\.(.*)", r"clip.model.\1"),
    (_TRANSFORMER + r"conv1\.(.*)", r"network.cost_embedding.\1"),
    (_TRANSFORMER + r"guidance_projection\.0\.(.*)", r"network.appearance_projection.\1"),
    (_TRANSFORMER + r"text_guidance_projection\.0\.(.*)", r"network.text_projection.\1"),
    (_TRANSFORMER + r"decoder_guidance_projection\.(\d)\.0\.(.*)", r"network.decoder_projections.\1.\2"),
    (_LAYER + r"swin_block\.guidance_norm\.(.*)", r"network.layers.\1.spatial.guidance_norm.\2"),
    (_BLOCK + r"attn\.q\.(.*)", _SPATIAL + r"query.\3"),
    (_BLOCK + r"attn\.k\.(.*)", _SPATIAL + r"key.\3"),
    (_BLOCK + r"attn\.v\.(.*)", _SPATIAL + r"value.\3"),
    (_BLOCK + r"attn\.proj\.(.*)", _SPATIAL + r"projection.\3"),
    (_BLOCK + r"mlp\.fc1\.(.*)", _SPATIAL + r"mlp.0.\3"),
    (_BLOCK + r"mlp\.fc2\.(.*)", _SPATIAL + r"mlp.2.\3"),
    (_BLOCK + r"(norm\d\..*)", _SPATIAL + r"\3"),
    (_LAYER + r"attention\.attention\.q\.(.*)", r"network.layers.\1.classes.attention.query.\2"),
    (_LAYER + r"attention\.attention\.k\.(.*)", r"network.layers.\1.classes.attention.key.\2"),
    (_LAYER + r"attention\.attention\.v\.(.*)", r"network.layers.\1.classes.attention.value.\2"),
    (_LAYER + r"attention\.MLP\.(.*)", r"network.layers.\1.classes.mlp.\2"),
    (_LAYER + r"attention\.(norm\d\..*|padding_\w+)", r"network.layers.\1.classes.\2"),
    (_TRANSFORMER + r"decoder(\d)\.up\.(.*)", r"network.decoder.{\1-1}.up.\2"),
    (_TRANSFORMER + r"decoder(\d)\.conv\.double_conv\.0\.(.*)", r"network.decoder.{\1-1}.conv1.\2"),
    (_TRANSFORMER + r"decoder(\d)\.conv\.double_conv\.1\.(.*)", r"network.decoder.{\1-1}.norm1.\2"),
    (_TRANSFORMER + r"decoder(\d)\.conv\.double_conv\.3\.(.*)", r"network.decoder.{\1-1}.conv2.\2"),
    (_TRANSFORMER + r"decoder(\d)\.conv\.double_conv\.4\.(.*)", r"network.decoder.{\1-1}.norm2.\2"),
    (_TRANSFORMER + r"head\.(.*)", r"network.head.\1"),
)

DROPPED = (
    # Follows from the window size and the grid.
    r".*\.attn_mask",
)

# Width and patch size of CLIP -> the CLIP of the published checkpoint, and what its sizes do not share with B/16.
RELEASES: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {
    (768, 16): ("ViT-B-16", {}),
    (1024, 14): ("ViT-L-14-336", {"input_size": [336, 336], "guidance_blocks": [7, 15]}),
}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring an official state dict to our names; half precision becomes float32.

    Args:
        state_dict: Official names, without the `model` level of the released file.

    Returns:
        Our names: `network.*` and `clip.model.*`.

    Raises:
        InputError: A name that no rule knows.
    """
    return rename_by_rules("CAT-Seg", state_dict, NAMES, DROPPED)


def settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the published checkpoints off their tensors, for a conversion without a configuration.

    Args:
        state_dict: The official state dict.

    Returns:
        `init_args` of `CATSeg`, and `vocabulary` and `split` that it was trained on.

    Raises:
        InputError: A checkpoint that is none of the published ones.
    """
    conv1 = state_dict.get("sem_seg_head.predictor.clip_model.visual.conv1.weight")
    if conv1 is None or (conv1.shape[0], conv1.shape[2]) not in RELEASES:
        raise InputError("This is none of the published CAT-Seg checkpoints; give its settings with -c CONFIG.")
    model, sizes = RELEASES[conv1.shape[0], conv1.shape[2]]
    init_args = {"clip": {"model": model, "pretrained": "openai"}, "sizes": sizes}
    return {"init_args": init_args, "vocabulary": "coco_stuff_171", "split": None}


def convert(state_dict: Mapping[str, Tensor], module: CATSeg) -> None:
    """Load an official release into a freshly built module.

    What trains of CLIP is loaded. Its frozen weights have to be those that the module stands on already; where it was
    built with random CLIP weights they are loaded as well.

    Args:
        state_dict: The official state dict (the `model` entry of a released file).
        module: Built with the sizes and the CLIP of the release.

    Raises:
        InputError: Weights are missing, unexpected or of another shape, or the module's CLIP is another one.
    """
    expected = fillable(module)
    found = rename(state_dict)
    if not any(name.endswith(PROJECTIONS) for name in expected):
        found = pack_attention(found)  # a CLIP of which neither queries nor values train on their own
    load_release(module, found, expected, "model.clip, model.sizes and model.train_clip")
