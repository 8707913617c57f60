"""CLIP-DIY: preprocessed crops, grids, their mean, foreground guidance and label maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.clip import CLIPSettings, TextClassifier, TextEmbeddings
from ovsl.inference import DensePrediction, NearestLabels, resize
from ovsl.layers import ImageNormalization
from ovsl.methods import CLIPDIY
from ovsl.methods.clip_diy.network import CLIPDIYSizes, guide, resized_crops, stretch
from tests.golden.harness import Case

INPUTS = ["image", "saliency_raw", "class_embeddings"]  # the last only where the case has no text tower
NOT_COMPUTED: dict[str, str] = {}
TOKENS = "text_model.embeddings.token_embedding.weight"


KNOWN_KEYS = {
    "": """method weights_naming seed vision text projection_dim hidden_act layer_norm_eps processor_size norm_mean
        norm_std img_size patch_sizes strides patch_weights interpolate_logits align_corners class_names prompt saliency
        gt_size label_margin tolerance open_clip_config text_tower weights_dtype tensors_io tensors_weights""",
    "open_clip_config": "embed_dim vision_cfg text_cfg quick_gelu",
    "open_clip_config.vision_cfg": "image_size layers width head_width patch_size mlp_ratio",
}


def build(case: Case) -> CLIPDIY:
    """The module of a case, with its CLIP."""
    meta = case.meta
    side, other = meta["img_size"]
    assert side == other
    assert not meta["align_corners"]
    assert meta["processor_size"] == meta["open_clip_config"]["vision_cfg"]["image_size"]
    assert meta["layer_norm_eps"] == 1e-5
    assert meta["open_clip_config"]["quick_gelu"] == (meta["hidden_act"] == "quick_gelu")
    sizes = CLIPDIYSizes(side, tuple(meta["patch_sizes"]), tuple(meta["strides"]), tuple(meta["patch_weights"]))
    module = CLIPDIY(
        CLIPSettings("golden", config=meta["open_clip_config"]),
        sizes,
        interpolation="bilinear" if meta["interpolate_logits"] else "nearest",
        window_batch_size=7,
    )
    weights = case.load("weights_open_clip.safetensors")
    own = module.clip.model.state_dict()
    if meta.get("text_tower", True):
        weights.setdefault("token_embedding.weight", case.weights[TOKENS])
    else:
        own = {name: tensor for name, tensor in own.items() if name.startswith("visual.")}
    assert own.keys() - weights.keys() <= {"attn_mask", "logit_scale"}, own.keys() - weights.keys()
    _, unexpected = module.clip.model.load_state_dict(weights, strict=False)
    assert not unexpected
    module.clip.normalize = ImageNormalization(meta["norm_mean"], meta["norm_std"])
    return module.eval()


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    case.check_keys(KNOWN_KEYS)
    meta, io = case.meta, case.io
    module = build(case)
    image, out = io["image"], {}
    vectors = io["class_embeddings"]
    if meta.get("text_tower", True):
        classifier = TextClassifier(module.clip)
        classifier.templates = (meta["prompt"].replace("{name}", "{}"),)
        out["class_embeddings"] = classifier.embed(tuple((name,) for name in meta["class_names"])).vectors
    # Where the softmax makes two classes equal, labels hang on the last bit of the text: go on with the recorded one.
    text = TextEmbeddings(vectors, torch.arange(len(vectors)), len(vectors))

    side = meta["img_size"][0]
    grids = module.grids(image, text)
    for index, (grid, crops) in enumerate(
        zip(grids, resized_crops(image, module.levels, module.crop_side), strict=True)
    ):
        out[f"scale{index}.patch_logits"] = grid
        out[f"scale{index}.mask"] = stretch(grid, side, module.interpolation)
        out[f"scale{index}.pixel_values"] = module.clip.normalize(crops.flatten(0, 2))
    scores = out["aggregated"] = module(image, text).scores
    if meta["saliency"]:
        out["saliency"] = resize(io["saliency_raw"][:, None], (side, side))
        scores = out["fused"] = guide(scores, out["saliency"])

    def labels(size: tuple[int, int]) -> Tensor:
        return NearestLabels().labels(lambda _: DensePrediction(scores), image, size)

    out |= {"pred": labels((side, side)), "pred_at_gt": labels(tuple(meta["gt_size"]))}
    return {name: tensor for name, tensor in out.items() if name in io}
