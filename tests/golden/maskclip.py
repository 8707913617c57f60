"""MaskCLIP and the plain patch-text baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import FrozenCLIP, TextClassifier, TextEmbeddings, ViTTower, build_network
from ovsl.clip.blocks import run_value_block
from ovsl.inference import DensePrediction, average_windows, resize
from ovsl.layers import interpolate_positions
from ovsl.layers.similarity import cosine_scores
from tests.golden.harness import Case
from tests.golden.windows import RectangularWindow

INPUTS = ["image", "slide_image", "class_embeddings"]  # the last only where the case has no text tower
NOT_COMPUTED: dict[str, str] = {}

KNOWN_KEYS = {
    "": """method weights_naming open_clip_config seed class_names use_templates pretrained_tag templates norm_mean
        norm_std temperature layer_norm_eps activation dtype slide label_margin tolerance text_tower weights_dtype
        tensors_io tensors_weights""",
    "open_clip_config": "embed_dim vision_cfg text_cfg quick_gelu",
    "open_clip_config.vision_cfg": "image_size layers width head_width patch_size mlp_ratio",
    "open_clip_config.text_cfg": "context_length vocab_size width heads layers",
    "slide": "crop stride original_shape",
}


def build(case: Case) -> FrozenCLIP:
    """The CLIP of a case, with its weights; random in the text tower where the case has none."""
    meta = case.meta
    activation = meta["activation"]
    assert activation.startswith(("gelu (exact", "quick_gelu")), f"{case}: unknown activation {activation!r}"
    quick_gelu = activation.startswith("quick_gelu")
    assert meta["open_clip_config"].get("quick_gelu", quick_gelu) == quick_gelu
    assert meta["dtype"] == "float32"
    network = build_network(meta["open_clip_config"] | {"quick_gelu": quick_gelu})
    for part in network.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = meta["layer_norm_eps"]
    missing, unexpected = network.load_state_dict(case.weights, strict=False)
    assert not unexpected
    assert not any(name.startswith("visual.") for name in missing), missing
    assert not (has_text_tower(case) and set(missing) - {"attn_mask"}), missing
    return FrozenCLIP(network, "golden", mean=meta["norm_mean"], std=meta["norm_std"]).eval()


def has_text_tower(case: Case) -> bool:
    present = any(name.startswith("transformer.") for name in case.weights)
    assert present == case.meta.get("text_tower", True)
    return present


def templates_of(meta: dict[str, Any]) -> tuple[str, ...]:
    """The recorded templates; without any those of the official code, which depend on where the weights are from."""
    if meta["templates"]:
        return tuple(meta["templates"])
    assert not meta["use_templates"], "which templates?"
    return ("a photo of a {}", "a photo of an {}") if "laion" in meta["pretrained_tag"] else ("a {}",)


def compute(case: Case) -> dict[str, Tensor]:
    meta, io = case.meta, case.io
    case.check_keys(KNOWN_KEYS)
    clip = build(case)
    tower = clip.require_tower(ViTTower, "MaskCLIP")
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        if has_text_tower(case):
            templates = templates_of(meta)
            prompts = [template.format(name) for name in meta["class_names"] for template in templates]
            tokens = clip.tokenize(prompts)
            raw = clip.encode_text(tokens)
            classifier = TextClassifier(clip)
            classifier.templates = templates
            names = tuple((name,) for name in meta["class_names"])
            text = classifier.embed(names).vectors
            out |= {"tokens": tokens, "prompt_embeds": raw, "class_embeddings": text}
        else:
            text = io["class_embeddings"]

        image = clip.normalize(io["image"])
        tokens, grid = tower.stem(image)
        *_, (before_last, _), (plain, _) = tower.intermediate_tokens(image)
        value = run_value_block(tower.blocks[-1], before_last)
        features = tower.project_patches(value, grid)
        plain_features = tower.project_patches(plain, grid)
        scores = cosine_scores(features, text)
        temperature = meta["temperature"]
        out |= {
            "norm_image": image,
            "pos_embed_resized": interpolate_positions(tower.visual.positional_embedding, grid),
            "block_m2_out": before_last,
            "value_path_out": value,
            "ln_post_map": tower.visual.ln_post(value[:, 1:]).transpose(1, 2).unflatten(2, grid),
            "feat": features,
            "cosine": scores,
            "prob": (temperature * scores).softmax(1),
            "plain_feat": plain_features,
            "plain_prob": (temperature * cosine_scores(plain_features, text)).softmax(1),
        }
        torch.testing.assert_close(tower.dense_features(image, "value"), features)
        torch.testing.assert_close(tower.dense_features(image, "attention"), plain_features)

        embeddings = TextEmbeddings(functional.normalize(text, dim=1), torch.arange(len(text)), len(text))

        def predict(images: Tensor) -> DensePrediction:
            cosine = cosine_scores(tower.dense_features(clip.normalize(images), "value"), embeddings.vectors)
            return DensePrediction((temperature * cosine).softmax(1))

        slide, slide_image = meta["slide"], io["slide_image"]
        inference = RectangularWindow(slide["crop"], slide["stride"])
        size, original = (slide_image.shape[2], slide_image.shape[3]), tuple(slide["original_shape"])
        windows = inference.windows(*size)
        crops = torch.cat([slide_image[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows])
        full = average_windows([predict(crops)], windows, size)
        out |= {
            "slide_windows": torch.tensor(windows),
            "slide_prob_full": full,
            "slide_prob_ori": resize(full, original),
            # Made by rows, not by averaging whole maps, which is what is checked.
            "slide_pred": inference.labels(predict, slide_image, original),
        }
    return {name: tensor for name, tensor in out.items() if name in io}
