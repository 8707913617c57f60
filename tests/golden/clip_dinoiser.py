"""CLIP-DINOiser: heads, teachers, background, windows, one training batch and the steps on it."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.inference import average_windows, resize
from ovsl.layers import ImageNormalization, pad_to_multiple, unit_vectors
from ovsl.layers.dino import DINOSettings, load_dino
from ovsl.layers.found import FOUNDSettings, load_decoder
from ovsl.methods import CLIPDINOiser
from ovsl.methods.clip_dinoiser.network import CLIPDINOiserSizes, drop_below, pool
from ovsl.methods.clip_dinoiser.teachers import DINOTeachers
from ovsl.methods.schedules import MultiStepSchedule
from tests.golden.harness import Case
from tests.golden.windows import RectangularWindow

INPUTS = ["image", "slide_image", "train_image", "class_embeddings"]
NOT_COMPUTED: dict[str, str] = {}
PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


KNOWN_KEYS = {
    "": """method weights_naming open_clip_config class_names seed in_dim gamma delta feats_idx conv_kernel clip_norm
        imagenet_norm dino found resize_antialias temperature decision_margin tolerance slide optimizer text_tower
        weights_dtype tensors_io tensors_weights""",
    "open_clip_config": "embed_dim vision_cfg text_cfg quick_gelu",
    "open_clip_config.vision_cfg": "image_size layers width head_width patch_size mlp_ratio",
    "dino": "width layers heads img_size patch_size features layer_norm_eps mlp_ratio",
    "found": "width layers heads img_size patch_size features layer_norm_eps mlp_ratio threshold",
    "slide": "crop stride original_shape apply_found",
    "optimizer": """type betas eps weight_decay lr milestones gamma steps same_batch_every_step history_columns
        history""",
    "optimizer.lr": "obj_proj bkg_decoder",
}


def dino_settings(meta: dict[str, Any]) -> DINOSettings:
    """An untrained DINO of a case's sizes; its LayerNorm and activation are timm's own."""
    assert meta["layer_norm_eps"] == 1e-6, meta
    sizes = {"img_size": meta["img_size"], "patch_size": meta["patch_size"], "embed_dim": meta["width"]}
    sizes |= {"depth": meta["layers"], "num_heads": meta["heads"], "mlp_ratio": meta.get("mlp_ratio", 4.0)}
    return DINOSettings("vit_base_patch16_224.dino", None, sizes)


def build(case: Case) -> CLIPDINOiser:
    """The module of a case, with its weights and teachers."""
    meta = case.meta
    assert not meta["resize_antialias"]
    assert meta["found"]["threshold"] == 0.5
    assert meta["found"]["features"].startswith("k ")
    assert tuple(meta["imagenet_norm"]["mean"]) == IMAGENET_DEFAULT_MEAN
    assert tuple(meta["imagenet_norm"]["std"]) == IMAGENET_DEFAULT_STD
    block, optimizer = meta["feats_idx"], meta.get("optimizer") or {}
    rates = optimizer.get("lr") or {"obj_proj": 5e-5, "bkg_decoder": 1e-2}
    module = CLIPDINOiser(
        CLIPSettings("golden", config=meta["open_clip_config"]),
        CLIPDINOiserSizes(meta["in_dim"], meta["conv_kernel"], None if block == "final" else block),
        lambda: DINOTeachers(
            dino_settings(meta["dino"]),
            FOUNDSettings(None, dino_settings(meta["found"])),
            PROJECTIONS[meta["dino"]["features"][0]],
        ),
        correlation_threshold=meta["gamma"] or 0.0,
        certainty=meta["delta"],
        temperature=meta["temperature"],
        background_rate=rates["bkg_decoder"] / rates["obj_proj"],
        optimizer=lambda groups: torch.optim.AdamW(
            groups, rates["obj_proj"], tuple(optimizer["betas"]), optimizer["eps"], optimizer["weight_decay"]
        ),
        schedule=MultiStepSchedule(tuple(optimizer.get("milestones", ())), optimizer.get("gamma", 0.1)),
    )  # fmt: skip
    weights = case.weights
    module.network.load_state_dict({name: weights.pop(f"{name}") for name in module.network.state_dict()})
    prefix = "clip_backbone.backbone.visual."
    module.tower.visual.load_state_dict(_pop(weights, prefix))
    teachers = module.teachers()
    load_dino(teachers.dino, _pop(weights, "vit_encoder."))
    load_dino(teachers.found.dino, _pop(weights, "found_model.vit_encoder."))
    load_decoder(teachers.found, {"decoder": _pop(weights, "found_model.decoder.")})
    assert not weights, sorted(weights)
    module.clip.normalize = ImageNormalization(meta["clip_norm"]["mean"], meta["clip_norm"]["std"])
    return module.eval()


def _pop(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def compute(case: Case) -> dict[str, Tensor]:
    case.check_keys(KNOWN_KEYS)
    meta, io = case.meta, case.io
    module = build(case)
    vectors = io["class_embeddings"]
    text = TextEmbeddings(vectors, torch.arange(len(vectors)), len(vectors))
    out = image_tensors(module, io["image"], text)
    if meta.get("slide"):
        out |= slide_tensors(module, io["slide_image"], text, meta["slide"])
    if "train_image" in io:
        out |= training_tensors(module, io["train_image"])
    if meta.get("optimizer"):
        out |= steps(module, io["train_image"], meta["optimizer"])
    return {name: tensor for name, tensor in out.items() if name in io}


@torch.no_grad()
def image_tensors(module: CLIPDINOiser, image: Tensor, text: TextEmbeddings) -> dict[str, Tensor]:
    padded = pad_to_multiple(image, module.tower.patch_size)
    features = module.features(padded)
    correlations, logits = module.network(features.intermediate)
    out = {
        "padded": padded,
        "clip_feat": features.dense,
        "corrs": correlations,
        "pooled": pool(features.dense, correlations, module.correlation_threshold),
        "bkg_logit": logits,
    }
    if module.network.feature_block is not None:
        out["clip_inter"] = intermediate_tokens(module, padded)
    for name, predict_with in (("prob", "heads"), ("teacher_prob", "teachers")):
        module.predict_with = predict_with
        for suffix, mark in (("_no_bkg" if predict_with == "heads" else "", False), ("_bkg", True)):
            module.mark_background = mark
            out[name + suffix] = module(image, text).scores
    module.predict_with = "heads"
    return out


def intermediate_tokens(module: CLIPDINOiser, padded: Tensor) -> Tensor:
    """The recorded tokens hold the class token too, which nothing reads."""
    blocks = module.tower.blocks
    kept: list[Tensor] = []
    hook = blocks[module.network.feature_block].ln_2.register_forward_hook(lambda *given: kept.append(given[2]))
    features = module.features(padded)
    hook.remove()
    torch.testing.assert_close(kept[0][:, 1:].transpose(1, 2), features.intermediate.flatten(2))
    return kept[0]


@torch.no_grad()
def slide_tensors(
    module: CLIPDINOiser, image: Tensor, text: TextEmbeddings, slide: dict[str, Any]
) -> dict[str, Tensor]:
    module.mark_background = slide["apply_found"]
    size, original = (image.shape[2], image.shape[3]), tuple(slide["original_shape"])
    inference = RectangularWindow(slide["crop"], slide["stride"])
    windows = inference.windows(*size)
    crops = torch.cat([image[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows])
    full = average_windows([module(crops, text)], windows, size)
    return {
        "slide_windows": torch.tensor(windows),
        "slide_prob_full": full,
        "slide_prob_ori": resize(full, original),
        "slide_pred": inference.labels(lambda crops: module(crops, text), image, original),
    }


def training_tensors(module: CLIPDINOiser, image: Tensor) -> dict[str, Tensor]:
    padded = pad_to_multiple(image, module.tower.patch_size)
    features = module.features(padded)
    correlations, logits = module.network(features.intermediate)
    teachers = module.teachers()
    taught = teachers(padded, (features.dense.shape[2], features.dense.shape[3]))
    projections = teachers.dino.last_projections(teachers.dino.normalize(padded))
    losses = module.losses({"image": image}).weighted
    total = losses["correlation"] + losses["foreground"]
    parameters = dict(module.network.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return {
        "train_clip_inter": features.intermediate,
        "train_bkg_logit": logits,
        "pred_corrs": correlations.clamp(min=0),
        "found_prob": taught.foreground,
        "found_logit": teachers.found(padded),
        "dino_corrs": drop_below(taught.correlations, module.correlation_threshold),
        "dino_feat": unit_vectors(getattr(projections, teachers.projection)).flatten(2),
        "loss_dino": losses["correlation"],
        "loss_found": losses["foreground"],
        "loss_total": total,
        **{f"grad.{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)},
    }


def steps(module: CLIPDINOiser, image: Tensor, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The recorded steps on one batch, by the module's own optimiser and schedule; the meta has losses and rates."""
    assert meta["type"] == "AdamW"
    assert meta["same_batch_every_step"]
    optimizer = module.optimizer(list(module.parameter_groups(meta["lr"]["obj_proj"])))
    scheduler = module.schedule.build(optimizer, total_steps=meta["steps"])
    history = []
    for _ in range(meta["steps"]):
        losses = module.losses({"image": image}).weighted
        rates = [group["lr"] for group in optimizer.param_groups]
        history.append([losses["correlation"].item(), losses["foreground"].item(), *rates])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        scheduler.step()
    assert meta["history_columns"] == ["loss_dino", "loss_found", "lr_obj_proj", "lr_bkg_decoder"]
    torch.testing.assert_close(history, meta["history"], rtol=1e-5, atol=1e-7)
    return {f"after.{name}": parameter.clone() for name, parameter in module.network.named_parameters()}
