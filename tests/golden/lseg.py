"""LSeg."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.losses import pixel_cross_entropy
from ovsl.methods.lseg import LSeg, LSegSizes, official
from ovsl.methods.lseg.multi_scale_sum import MultiScaleSum
from ovsl.methods.lseg.network import LOGIT_SCALE, ViTPyramid
from tests.golden.harness import Case

# Text features are an input only where the case has no text tower.
INPUTS = ["image", "ms_image", "gt", "text_features.*", "class_info"]
NOT_COMPUTED: dict[str, str] = {}
TOLERANCES = {"logits_half": 5e-3}  # sums of half-precision numbers depend on their order

KNOWN_OPTIONS = {
    "": """method reference text_tower omitted_weights weights_dtype config normalisation fixed tolerance
        without_gradient tensors weights""",
    "config": """kind backbone_key patch_size width depth heads pos_grid num_classes hooks reassemble features out_c
        text_width text_heads text_layers arch_option block_depth activation class_names runtime_labels crop_size
        ignore_index batch image_size ms seed class_info width_div layers""",
    "fixed": """logit_scale readout use_bn align_corners vit_layer_norm_eps clip_visual clip_text vit_mlp_ratio
        vit_activation vit_head resnet""",
    "config.ms": "image_size base_size crop_size scales",
    "fixed.clip_text": "context_length vocab_size width heads layers embed_dim activation",
}
REGULARIZERS = {0: "none", 1: "bottleneck", 2: "depthwise"}


def check_options(case: Case) -> None:
    """Stop at anything that the case asks for and that would otherwise be passed over."""
    case.check_keys(KNOWN_OPTIONS)
    fixed, config = case.meta["fixed"], case.meta["config"]
    assert abs(fixed["logit_scale"] - LOGIT_SCALE) < 1e-5
    assert fixed.get("readout", "project") == "project"
    assert (fixed.get("use_bn", True), fixed.get("align_corners", True)) == (True, True)
    assert (fixed.get("vit_layer_norm_eps", 1e-6), fixed.get("vit_mlp_ratio", 4)) == (1e-6, 4)
    assert config.get("activation", "lrelu") in ("lrelu", "tanh")


def build(case: Case) -> LSeg:
    """The module of a case, with its weights."""
    meta = case.meta
    config, fixed = meta["config"], meta["fixed"]
    text = {"context_length": 77, "width": config["text_width"], "heads": config["text_heads"]}
    text |= {"layers": config["text_layers"], "vocab_size": 49408 if meta.get("text_tower", True) else 8}
    vision = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 16}
    options: dict[str, Any]
    if "vit" in config["kind"] or "hooks" in config:
        backbone = "vit_base_patch16_384"
        options = {
            "patch_size": config["patch_size"],
            "img_size": config["pos_grid"] * config["patch_size"],
            "embed_dim": config["width"],
            "depth": config["depth"],
            "num_heads": config["heads"],
        }
    else:
        backbone = "resnet101"
        planes = [width // config.get("width_div", 1) for width in (64, 128, 256, 512)]
        options = {"layers": config["layers"], "channels": planes}
    module = LSeg(
        clip=CLIPSettings(
            "golden", quick_gelu=True, config={"embed_dim": config["out_c"], "vision_cfg": vision, "text_cfg": text}
        ),
        backbone=backbone,
        backbone_options=options,
        blocks=config.get("hooks"),
        sizes=LSegSizes(config["features"], config.get("reassemble")),
        regularizer=REGULARIZERS[config.get("arch_option", 0)],  # type: ignore[arg-type]
        regularizer_depth=config.get("block_depth", 0),
        regularizer_activation=config.get("activation", "lrelu"),
        objective="one_class" if "class_info" in config else "all_classes",
    )
    assert fixed.get("clip_text", {}).get("activation", "QuickGELU") == "QuickGELU"
    for buffer, values in ((module.normalize.mean, "mean"), (module.normalize.std, "std")):
        torch.testing.assert_close(buffer.flatten(), torch.tensor(meta["normalisation"][values]))
    official.convert(case.weights, module)
    return module


def unnormalized(module: LSeg, images: Tensor) -> Tensor:
    """Recorded images are normalised already; the module does that itself."""
    return images * module.normalize.std + module.normalize.mean


def embed_text(case: Case, module: LSeg, suffix: str = "") -> tuple[Tensor, dict[str, Tensor]]:
    """Texts `(K, D)`, or `(B, 2, D)` where each image is asked for a class of its own, and what is compared."""
    recorded, features = case.io[f"token_ids{suffix}"], f"text_features{suffix}"
    texts, out = case.io[features], {}
    if case.meta.get("text_tower", True):
        texts = module.clip.encode_text(recorded.long().flatten(0, -2)).view_as(texts)
        out[features] = texts
    config = case.meta["config"]
    names, asked = config["runtime_labels" if suffix else "class_names"], config.get("class_info")
    # What the texts may stand for, one list of labels each; with episodes "others" is one of two labels of each class.
    layouts = {"labels": names}
    if asked is not None:
        pairs = [["others", name] if isinstance(name, str) else list(name) for name in names]
        layouts = {
            "pair of each class": list(chain(*pairs)),
            "pair of each image": list(chain(*(pairs[index] for index in asked))),
            "others first": [pairs[0][0], *(name for _, name in pairs)],
            "labels": [name for _, name in pairs],
        }
    tokens = {layout: module.clip.tokenize(labels) for layout, labels in layouts.items()}
    layout = next((each for each, ids in tokens.items() if torch.equal(ids, recorded.flatten(0, -2).long())), None)
    assert layout is not None, f"{case}: token_ids{suffix} are those of none of {', '.join(layouts)}"
    out[f"token_ids{suffix}"] = tokens[layout].view_as(recorded)
    if asked is None:
        return texts.detach(), out
    texts = texts.flatten(0, -2).detach()
    if layout == "labels":  # the tokens do not tell, the number of texts does
        numbers = {len(labels): each for each, labels in reversed(layouts.items())}
        layout = numbers.get(len(texts), layout)
    if layout == "others first":
        return torch.stack([texts[:1].expand(len(asked), -1), texts[1:][asked]], dim=1), out
    assert layout != "labels", f"{case}: {len(texts)} texts hold no pair for each class or image"
    texts = texts.unflatten(0, (-1, 2))
    return texts[asked] if layout == "pair of each class" else texts, out


def class_logits(case: Case, module: LSeg, images: Tensor, text: Tensor) -> Tensor:
    """Logits at the size of the images, or at the network's own where the case was recorded so.

    The official network drops the rest of an image that is no multiple of its patch; ours is given it padded.
    """
    if case.io["logits"].shape[-2:] == images.shape[-2:]:
        return module.class_logits(images, text)
    return module.network(module.normalize(images), text).class_logits


def compute(case: Case) -> dict[str, Tensor]:
    meta, io = case.meta, case.io
    check_options(case)
    config = meta["config"]
    module = build(case).eval()
    network, encoder = module.network, module.network.encoder
    with torch.no_grad():
        text, out = embed_text(case, module)
        images = unnormalized(module, io["image"])
        normalized = module.normalize(images)
        if isinstance(encoder, ViTPyramid):
            tokens, _ = encoder.tokens(normalized)
            out |= {f"vit.{i}": level for i, level in enumerate(tokens, start=1)}
        levels = encoder(normalized)
        paths = network.decoder.paths(levels)
        maps = network.decoder(levels)
        out |= {f"layer.{i}": level for i, level in enumerate(levels, start=1)}
        out |= {f"path.{i}": path for i, path in enumerate(paths, start=1)}
        out |= {"image_features": network.head(maps), "pixel_logits": network.match(maps, text)}
        if "logits_half" in io:
            network.matching = "float16"
            out["logits_half"] = class_logits(case, module, images, text)
            network.matching = "float32"
        if "logits_runtime" in io:
            runtime, compared = embed_text(case, module, "_runtime")
            out |= compared | {"logits_runtime": class_logits(case, module, images, runtime)}
    logits = class_logits(case, module, images, text)
    loss = loss_of(logits, io["gt"], config)
    loss.backward()
    out |= {"logits": logits, "pred": logits.argmax(1), "loss.ce": loss}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name in io:
        if name.startswith("grad."):
            (ours,) = official.rename({name.removeprefix("grad."): torch.empty(0)})
            gradient = gradients[ours]
            assert gradient is not None, name
            out[name] = gradient
    with torch.no_grad():
        state = {key: value.clone() for key, value in network.state_dict().items()}
        module.train()
        out["loss_train_mode.ce"] = loss_of(class_logits(case, module, images, text), io["gt"], config)
        network.load_state_dict(state)
        module.eval()
        if config.get("ms"):
            out |= compute_views(case, module, text)
    return {name: tensor for name, tensor in out.items() if name in io}


def loss_of(logits: Tensor, labels: Tensor, config: dict[str, Any]) -> Tensor:
    return pixel_cross_entropy(logits, labels.long(), config.get("ignore_index", 255))


def compute_views(case: Case, module: LSeg, text: Tensor) -> dict[str, Tensor]:
    views = case.meta["config"]["ms"]
    image = unnormalized(module, case.io["ms_image"])
    size = (image.shape[2], image.shape[3])
    embeddings = TextEmbeddings(text, torch.arange(len(text)), len(text))

    def predict(crops: Tensor) -> Any:
        return module(crops, embeddings)

    inference = MultiScaleSum(views["base_size"], views["crop_size"], views["scales"])
    single = MultiScaleSum(views["base_size"], views["crop_size"], (1.0,), flip=False)
    return {
        "ms_scores": inference.scores(predict, image, size),
        "ms_scores_noflip": single.scores(predict, image, size),
        "ms_pred": inference.labels(predict, image, size),
    }
