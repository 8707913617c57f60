"""The line from SCLIP to CorrCLIP: one way to rebuild the cases of all five."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import TextClassifier, TextEmbeddings
from ovsl.inference import PAMR, SlidingWindow, WholeImage, WordInference, WordRules, average_windows
from ovsl.inference.regions import resize_regions
from ovsl.layers import ImageNormalization, interpolate_positions
from ovsl.layers.dino import DINOSettings, load_dino
from ovsl.methods.base import CLIPSettings
from ovsl.methods.training_free import (
    DINOProxy,
    LastBlock,
    ProxyAttention,
    RegionCorrelation,
    TokenAttention,
    TrainingFree,
)
from ovsl.methods.training_free.last_block import Compared, block_inputs, projections
from ovsl.methods.training_free.module import CLIP_MEAN_255, CLIP_STD_255, PADDED_REGION, centred_padding
from ovsl.methods.training_free.proxy import patch_values, unit_patches
from ovsl.methods.training_free.region_correlation import region_numbers
from tests.golden.harness import Case

INPUTS = ["slide_image", "query_embeddings", "query_index", "region_map"]
NOT_COMPUTED: dict[str, str] = {}

KNOWN_KEYS = {
    "": """method weights_naming open_clip_config activation layer_norm_eps seed class_words class_names templates
        norm_mean_255 norm_std_255 dtype options original_shape intermediate_window tolerance tensors_io tensors_weights
        vfm imagenet_norm clip_norm""",
    "open_clip_config": "embed_dim vision_cfg text_cfg quick_gelu",
    "open_clip_config.vision_cfg": "image_size layers width head_width patch_size mlp_ratio",
    "open_clip_config.text_cfg": "context_length vocab_size width heads layers",
    "options": """logit_scale prob_thd area_thd slide_crop slide_stride pamr_steps pamr_dilations arch attn_strategy
        gaussian_std model_type ignore_residual pad_multiple alpha beta gamma tau dbscan_eps dbscan_min_samples""",
}

COMPARED: dict[str, list[Compared]] = {
    "vanilla": ["query-key"],
    "naclip": ["key-key"],
    "kk": ["key-key"],
    "csa": ["query-query", "key-key"],
    "nonly": ["neighbours"],
    "ClearCLIP": ["query-query"],
    "MaskCLIP": ["identity"],
    "SCLIP": ["query-query", "key-key"],
}
"""What the switches of the official NACLIP and ClearCLIP compare."""


def compute(case: Case) -> dict[str, Tensor]:
    meta, io = case.meta, case.io
    case.check_keys(KNOWN_KEYS)
    module = build(case)
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        if "tokens" in io:
            names = tuple(tuple(words) for words in meta["class_words"])
            classifier = TextClassifier(module.clip, "imagenet_80", "max")
            tokens = module.clip.tokenize(classifier.prompts(names))
            text = classifier.embed(names)
            out |= {"tokens": tokens, "prompt_embeds": module.clip.encode_text(tokens)}
        else:
            text = TextEmbeddings(io["query_embeddings"], io["query_index"].long(), len(meta["class_words"]))
        out |= {"query_embeddings": text.vectors, "query_index": text.class_index}
        images = (io["slide_image"] * 255).round().to(torch.uint8)
        regions = io["region_map"][None] if "region_map" in io else None
        inference, original = word_inference(case), tuple(meta["original_shape"])

        def predict(*maps: Tensor) -> Any:
            return module(maps[0], text, *maps[1:])

        size = (images.shape[2], images.shape[3])
        windows, predictions = inference.inference.predictions(predict, images, regions)
        y1, x1, y2, x2 = windows[meta["intermediate_window"] if len(windows) > 1 else 0]
        resized = None if regions is None else resize_regions(regions, size)[..., y1:y2, x1:x2]
        out |= intermediates(module, images[..., y1:y2, x1:x2], text, resized)
        scores_of, word_classes = inference.word_scores(predict, images, original, regions)
        # Three words at a time, so that the refinement of chunks is what is checked.
        chunks = range(0, len(word_classes), 3)
        scores = torch.cat([scores_of(slice(start, start + 3)) for start in chunks], dim=1)
        refinement, inference.refinement = inference.refinement, None
        unrefined = inference.word_scores(predict, images, original, regions)[0](slice(None))
        inference.refinement = refinement
        rules = inference.rules
        probabilities = rules.probabilities(scores, word_classes)
        out |= {
            "norm_image": module.normalize(images),
            "slide_windows": torch.tensor(windows),
            "window_cosine": torch.cat([prediction.scores for prediction in predictions]),
            "slide_logits_full": average_windows(
                [replace(prediction, word_classes=None) for prediction in predictions], windows, size
            ),
            "slide_logits_ori": unrefined,
            "pamr_logits": scores,
            "query_prob": (rules.logit_scale * scores).softmax(1)[0],
            "class_prob": probabilities[0],
            "pred_argmax": probabilities.argmax(1),
            "slide_pred": inference.labels(predict, images, original, regions=regions),
        }
        if rules.area_threshold is not None:
            small = rules.small_classes(probabilities.argmax(1), text.num_classes)
            out["class_prob_area"] = probabilities.masked_fill(small[..., None, None], 0)[0]
        labels = rules.labels(lambda words: scores[:, words], word_classes, chunk_size=3)
        torch.testing.assert_close(rules.thresholded(probabilities).argmax(1), labels)
        if regions is not None:
            out["pred_before_regions"] = labels
        if "whole_cosine" in io:
            whole = WordInference(WholeImage(), at_input_size=False)
            grid = (size[0] // module.tower.patch_size, size[1] // module.tower.patch_size)
            out["whole_pos_embed"] = interpolate_positions(module.tower.visual.positional_embedding, grid, "offset")
            out["whole_cosine"] = predict(images).scores
            out["whole_logits_ori"] = whole.word_scores(predict, images, original)[0](slice(None))
    return {name: tensor for name, tensor in out.items() if name in io}


def build(case: Case) -> TrainingFree:
    """The module as a YAML would build it, with the weights of the case."""
    meta, options = case.meta, case.meta["options"]
    quick_gelu = meta["activation"].startswith("quick_gelu")
    assert quick_gelu or meta["activation"].startswith("gelu (exact"), meta["activation"]
    assert meta["open_clip_config"].get("quick_gelu", quick_gelu) == quick_gelu
    module = TrainingFree(
        clip=CLIPSettings("golden", config=meta["open_clip_config"] | {"quick_gelu": quick_gelu}),
        last_block=last_block(case),
        padding=options.get("pad_multiple"),
    ).eval()
    weights = {name: tensor for name, tensor in case.weights.items() if not name.startswith("vfm.")}
    missing, unexpected = module.clip.model.load_state_dict(weights, strict=False)
    has_text = any(name.startswith("transformer.") for name in weights)
    assert not unexpected
    assert all(not name.startswith("visual.") for name in missing)
    assert not (has_text and set(missing) - {"attn_mask"}), missing
    for part in module.tower.visual.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = meta["layer_norm_eps"]
    clip_norm = meta.get("clip_norm", {})
    assert tuple(clip_norm.get("mean", OPENAI_DATASET_MEAN)) == OPENAI_DATASET_MEAN
    assert tuple(clip_norm.get("std", OPENAI_DATASET_STD)) == OPENAI_DATASET_STD
    mean, std = tuple(meta["norm_mean_255"]), tuple(meta["norm_std_255"])
    if (mean, std) != (CLIP_MEAN_255, CLIP_STD_255):
        module.normalize = ImageNormalization([m / 255 for m in mean], [s / 255 for s in std])
    return module


def last_block(case: Case) -> LastBlock:
    options = case.meta["options"]
    if case.method == "sclip":
        return TokenAttention()
    if case.method == "naclip":
        strategy = options["attn_strategy"]
        near = options["gaussian_std"] if strategy in ("naclip", "nonly") else None
        return TokenAttention(COMPARED[strategy], near, keep_residual=options["arch"] == "vanilla")
    if case.method == "clearclip":
        return TokenAttention(COMPARED[options["model_type"]], keep_residual=not options["ignore_residual"])
    if case.method == "proxyclip":
        return ProxyAttention(proxy(case, "final"), options["beta"], options["gamma"])
    assert case.method == "corrclip"
    assert options["dbscan_min_samples"] == 1
    return RegionCorrelation(
        proxy(case, "query+key"), options["tau"], options["dbscan_eps"], options["alpha"], options["beta"]
    )


def proxy(case: Case, features: Any) -> DINOProxy:
    meta = case.meta["vfm"]
    weights = {name[4:]: tensor for name, tensor in case.weights.items() if name.startswith("vfm.")}
    assert meta["type"] in ("dino", "dinov2"), meta["type"]
    norm = case.meta["imagenet_norm"]
    assert (tuple(norm["mean"]), tuple(norm["std"])) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert meta["layer_norm_eps"] == 1e-6
    assert meta["activation"].startswith("gelu (exact")
    options: dict[str, Any] = {
        "img_size": meta["img_size"],
        "patch_size": meta["patch_size"],
        "embed_dim": meta["width"],
        "depth": meta["layers"],
        "num_heads": meta["heads"],
        "mlp_ratio": meta["mlp_ratio"],
    }
    model = "vit_base_patch16_224" if meta["type"] == "dino" else "vit_base_patch14_dinov2"
    if "register_tokens" in weights:
        model = "vit_base_patch14_reg4_dinov2"
        options["reg_tokens"] = weights["register_tokens"].shape[1]
    built = DINOProxy(DINOSettings(model, None, options), features)
    load_dino(built.dino, weights)
    return built


def word_inference(case: Case) -> WordInference:
    options = case.meta["options"]
    crop, steps = options["slide_crop"], options.get("pamr_steps") or 0
    area = options.get("area_thd")
    return WordInference(
        SlidingWindow(crop, options["slide_stride"], window_batch_size=3) if crop > 0 else WholeImage(),
        WordRules(options["logit_scale"], options.get("prob_thd") or 0.0, area if area else None),
        PAMR(steps, options["pamr_dilations"]) if steps else None,
        at_input_size=case.method != "sclip",
        correct_regions=case.method == "corrclip",
        word_chunk_size=3,
    )


def intermediates(
    module: TrainingFree, window: Tensor, text: TextEmbeddings, regions: Tensor | None
) -> dict[str, Tensor]:
    """What happens in one window."""
    tower, block = module.tower, module.last_block
    padding = centred_padding(window, module.padding)
    padded = functional.pad(module.normalize(window), padding)
    inputs, grid = block_inputs(tower, padded)
    last, tokens = tower.blocks[-1], inputs[-1]
    num_heads = last.attn.num_heads
    out = {
        "padded_window": padded,
        "pos_embed_resized": interpolate_positions(tower.visual.positional_embedding, grid, "offset"),
        "block_m2_out": tokens,
        "feat": module.dense_features(window, regions)[0],
        "cosine": module(window, text, regions).scores if regions is not None else module(window, text).scores,
    }
    if isinstance(block, TokenAttention):
        query, key, value = projections(last, tokens)
        weights = 0
        for left, right, bias in block.terms(query, key, num_heads, grid):
            left, right = (side.unflatten(2, (num_heads, -1)).transpose(1, 2) for side in (left, right))
            logits = left @ right.transpose(2, 3) / left.shape[-1] ** 0.5
            if bias is not None:
                logits = logits.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else logits + bias
            weights = weights + logits.softmax(-1)
        mixed = weights @ value.unflatten(2, (num_heads, -1)).transpose(1, 2)
        return out | {
            "last_attn": weights[0],
            "last_attn_out": last.attn.out_proj(mixed.transpose(1, 2).flatten(2)),
            "last_block_out": block.run(last, tokens, grid),
        }
    assert isinstance(block, ProxyAttention | RegionCorrelation)
    colors = padded * module.clip.std + module.clip.mean
    features = block.proxy(colors)
    patches, size = unit_patches(features), (features.shape[2], features.shape[3])
    out |= {"vfm_image": block.proxy.dino.normalize(colors), "similarity": (patches @ patches.transpose(1, 2))[0]}
    if isinstance(block, ProxyAttention):
        values, attention = patch_values(last, tokens, grid, size), block.attention(patches)
        return out | {
            "vfm_feat": features,
            "last_attn": attention,
            "values_up": values.unflatten(2, (num_heads, -1)).transpose(1, 2),
            "last_attn_out": last.attn.out_proj(attention @ values),
        }
    assert regions is not None
    on_grid = resize_regions(functional.pad(regions, padding, value=PADDED_REGION), size)
    merged = block.merge(patches, on_grid)
    branches = block.branches(tower, padded, patches, merged)
    return out | {
        "vfm_feat": patches.transpose(1, 2).unflatten(2, size),
        "last_attn": block.attention(patches, merged),
        "main_out": branches.main,
        "spatial_out": branches.spatial,
        "semantic_out": branches.semantic,
        "regions_window": on_grid[0],
        "regions_merged": merged[0],
        "block_m2_out": torch.cat([tokens, block.spatial_tokens(inputs)]),
        "semantic_tokens": block.region_tokens(tower, inputs, region_numbers(resize_regions(merged, grid)))[0],
    }
