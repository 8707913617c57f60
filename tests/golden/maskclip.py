"""MaskCLIP and the plain patch-text baseline."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.clip import FrozenCLIP, TextClassifier, TextEmbeddings, ViTTower, build_network
from ovsl.clip.image_tower import run_value_block
from ovsl.inference import DensePrediction, SlidingWindow, average_windows, resize
from ovsl.layers import interpolate_positions
from ovsl.layers.similarity import cosine_scores
from tests.golden.harness import Case

INPUTS = ["image", "slide_image", "class_embeddings"]  # the last only where the case has no text tower
NOT_COMPUTED: dict[str, str] = {}


def compute(case: Case) -> dict[str, Tensor]:
    meta, io = case.meta, case.io
    assert meta["activation"].startswith("gelu (exact"), "only exact GELU cases are known"
    network = build_network(meta["open_clip_config"])
    weights = case.weights
    missing, unexpected = network.load_state_dict(weights, strict=False)
    has_text = any(name.startswith("transformer.") for name in weights)
    assert not unexpected
    assert all(not name.startswith("visual.") for name in missing)
    assert not (has_text and set(missing) - {"attn_mask"}), missing
    clip = FrozenCLIP(network, "golden", mean=meta["norm_mean"], std=meta["norm_std"]).eval()
    tower = clip.require_tower(ViTTower, "MaskCLIP")
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        if has_text:
            prompts = [template.format(name) for name in meta["class_names"] for template in meta["templates"]]
            tokens = clip.tokenize(prompts)
            raw = clip.encode_text(tokens)
            classifier = TextClassifier(clip)
            classifier.templates = tuple(meta["templates"])
            names = tuple((name,) for name in meta["class_names"])
            text = classifier._embed(names).vectors
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
        (crop, _), (stride, _) = slide["crop"], slide["stride"]
        inference = SlidingWindow(crop, stride)
        size, original = (slide_image.shape[2], slide_image.shape[3]), tuple(slide["original_shape"])
        windows = inference.windows(*size)
        crops = torch.cat([slide_image[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows])
        full = average_windows([predict(crops)], windows, size)
        out |= {
            "slide_windows": torch.tensor(windows),
            "slide_prob_full": full,
            "slide_prob_ori": resize(full, original),
            # Two classes at a time, so that the running maximum over class chunks is what is checked.
            "slide_pred": inference.labels(predict, slide_image, original, class_chunk_size=2),
        }
    return {name: tensor for name, tensor in out.items() if name in io}
