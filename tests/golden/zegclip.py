"""ZegCLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.clip import CLIPSettings, TextClassifier, TextEmbeddings
from ovsl.inference import Inference, WholeImage, average_windows, resize
from ovsl.losses import pixel_accuracy
from ovsl.methods.zegclip import ZegCLIP, ZegCLIPSizes, official
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import Case
from tests.golden.windows import RectangularWindow

INPUTS = ["img", "test.img", "train.gt", "text.tokens", "text.embedding"]  # the last where the case has no text tower
NOT_COMPUTED: dict[str, str] = {}

KNOWN_OPTIONS = {
    "": """method case ft_backbone exclude_key text_tower weights_dtype backbone text_encoder decode_head loss
        class_names base_class novel_class both_class self_training seen_score_offset text_embedding_dtype test
        norm_mean norm_std dropout_in_training trainable_but_without_gradient tolerance tensors weights""",
    "backbone": """type patch_size width layers heads output_dim input_resolution num_tokens prompt_dim total_d_layer
        drop_path_rate_configured_but_inert ft_backbone exclude_key out_indices get_embeddings""",
    "text_encoder": "vocab_size context_length width heads layers embed_dim templates_per_class",
    "decode_head": "img_size embed_dims num_layers num_heads ffn_dim use_stages use_proj",
    "loss": "mask_weight dice_weight focal_alpha focal_gamma ignore_index",
    "test": "mode crop_size stride test_hw ori_hw",
}


def check_options(case: Case) -> None:
    """Stop at anything that the case asks for and that would otherwise be passed over."""
    case.check_keys(KNOWN_OPTIONS)
    meta = case.meta
    backbone, head, loss = meta["backbone"], meta["decode_head"], meta["loss"]
    assert "ViT" in backbone["type"] or "VisionTransformer" in backbone["type"], backbone["type"]
    assert backbone.get("prompt_dim") in (None, backbone["width"])
    assert len(backbone.get("out_indices") or [0]) == 1
    assert backbone.get("get_embeddings", True)
    assert (head["use_stages"], head["use_proj"]) == (1, False)
    assert (loss["focal_alpha"], loss["focal_gamma"]) == (0.25, 2.0)
    assert not meta.get("test") or meta["test"]["mode"] in ("slide", "whole")
    assert meta["base_class"] == sorted(meta["base_class"])
    assert meta["both_class"] == list(range(len(meta["class_names"])))
    assert meta["text_embedding_dtype"] in ("float16", "float32")


def build(case: Case) -> ZegCLIP:
    """The module of a case, with its weights."""
    meta = case.meta
    backbone, head, text = meta["backbone"], meta["decode_head"], meta["text_encoder"]
    text = text or {"vocab_size": 8, "context_length": 77, "width": 8, "heads": 1, "layers": 1}
    vision = {
        "layers": backbone["layers"],
        "width": backbone["width"],
        "head_width": backbone["width"] // backbone["heads"],
        "patch_size": backbone["patch_size"],
        "image_size": backbone["input_resolution"],
    }
    config = {
        "embed_dim": backbone["output_dim"],
        "vision_cfg": vision,
        "text_cfg": {key: text[key] for key in ("vocab_size", "context_length", "width", "heads", "layers")},
    }
    num_prompts = backbone.get("num_tokens") or 0
    module = ZegCLIP(
        clip=CLIPSettings("golden", quick_gelu=True, config=config),
        sizes=ZegCLIPSizes(
            num_prompts=num_prompts,
            deep_prompt_layers=backbone["total_d_layer"] if num_prompts else None,
            num_layers=head["num_layers"],
            num_heads=head["num_heads"],
            feed_forward=head["ffn_dim"],
        ),
        focal_weight=meta["loss"]["mask_weight"],
        dice_weight=meta["loss"]["dice_weight"],
        seen_offset=meta["seen_score_offset"],
        self_training_start=0 if meta["self_training"] else None,
        dropout=0.0,
        round_text=meta["text_embedding_dtype"] == "float16",
    )
    assert head["embed_dims"] == backbone["output_dim"]
    official.convert(case.weights, module)
    module.normalize.mean.copy_(torch.tensor(meta["norm_mean"]).view(3, 1, 1) / 255)
    module.normalize.std.copy_(torch.tensor(meta["norm_std"]).view(3, 1, 1) / 255)
    module.clip.freeze(trainable_clip(case, [name for name, _ in module.tower.visual.named_parameters()]))
    seen = tuple(index in meta["base_class"] for index in range(len(meta["class_names"])))
    words = tuple((name,) for name in meta["class_names"])
    colors = tuple((0, 0, 0) for _ in words)
    ignore_index = meta["loss"]["ignore_index"]
    module.training_vocabulary = Vocabulary(
        "golden", tuple(meta["class_names"]), words, seen, None, colors, ignore_index
    )
    return module


def trainable_clip(case: Case, names: list[str]) -> list[str]:
    """Names of the image tower's parameters that train, officially told by substrings of their names."""
    options = case.meta | case.meta["backbone"]
    keys = options.get("exclude_key") or []
    keys = [keys] if isinstance(keys, str) else keys
    recorded = {name.removeprefix("grad.backbone.") for name in case.io}
    return [
        f"visual.{name}"
        for name in names
        if options.get("ft_backbone") or name in recorded or any(key in name for key in keys)
    ]


def embed_text(case: Case, module: ZegCLIP) -> tuple[TextEmbeddings, dict[str, Tensor]]:
    """Text embeddings of all classes, from the recorded tokens where the case has a text tower."""
    meta, io, out = case.meta, case.io, {}
    vocabulary = module.training_vocabulary
    assert vocabulary is not None
    recorded = io["text.embedding"]
    if meta["text_encoder"] is not None:
        tokens = io["text.tokens"].flatten(0, -2)
        sentences = meta["text_encoder"].get("templates_per_class", 1)
        assert len(tokens) == len(vocabulary) * sentences
        if "text.encoder_raw" in io:
            out["text.encoder_raw"] = module.clip.encode_text(tokens).view_as(io["text.encoder_raw"])
        module.clip.tokenize = lambda prompts: tokens  # type: ignore[method-assign]  # the small tower has other words
        module.text_classifier.templates = ("{}",) * sentences
        vectors = module.text_classifier(vocabulary).vectors
        if "text.embedding_fp32" in io:
            out["text.embedding_fp32"] = vectors
        rounded = vectors.to(recorded.dtype)
        # A value at the middle of two half-precision numbers may round either way.
        nudged = [(vectors + step).to(recorded.dtype) == recorded for step in (-1e-6, 1e-6)]
        out["text.embedding"] = torch.where(nudged[0] | nudged[1], recorded, rounded)
    else:
        out["text.embedding"] = recorded
    vectors = out["text.embedding"].float()
    index = torch.arange(len(vocabulary))
    text = TextEmbeddings(vectors, index, len(vocabulary), torch.tensor(vocabulary.seen))
    # Training asks the classifier for the seen classes, or for all: give it the recorded embeddings.
    classifier = module.text_classifier
    assert isinstance(classifier, TextClassifier)
    classifier.remember(vocabulary, text)
    subset = vocabulary.subset(vocabulary.seen_indices)
    rows = vocabulary.seen_indices
    seen = TextEmbeddings(vectors[rows], index[: len(rows)], len(rows), torch.ones(len(rows), dtype=torch.bool))
    classifier.remember(subset, seen)
    return text, out


def compute(case: Case) -> dict[str, Tensor]:
    meta, io = case.meta, case.io
    check_options(case)
    module = build(case).eval()
    encoder, decoder, tower = module.network.encoder, module.network.decoder, module.tower
    with torch.no_grad():
        text, out = embed_text(case, module)
        images = module.normalize(unnormalized(case, "img"))
        out["backbone.conv1"] = tower.visual.conv1(images)
        embedded, _ = encoder.embed(images)
        out["backbone.ln_pre"] = embedded
        if encoder.num_prompts:
            projected = encoder.prompts()
            first = encoder.first_block
            out |= {f"backbone.prompt_proj{first + row}": prompts for row, prompts in enumerate(projected)}
            if encoder.deep_layers >= 0:
                out["backbone.prompt_proj0"] = projected[:1]
        for index, tokens in enumerate(encoder.intermediate_tokens(embedded)):
            out[f"backbone.block{index}"] = tokens.transpose(0, 1)
        if encoder.has_prompt_norm:
            tokens = encoder.prompt_norm(tokens)
            out["backbone.prompt_norm"] = tokens.transpose(0, 1)
        out["backbone.ln_post"] = tower.visual.ln_post(tokens)
        patches, image_embeddings = encoder(images)
        descriptors = decoder.descriptors(text.vectors, image_embeddings)
        queries = decoder.q_proj(descriptors)
        out |= {
            "backbone.feat": patches,
            "backbone.cls": image_embeddings,
            "head.queries_in": descriptors,
            "head.q_proj": queries,
        }
        memory = patches.flatten(2).transpose(1, 2)
        for index, layer in enumerate(decoder.layers):
            out[f"head.dec{index}_attn"] = layer.mask_logits(queries, memory)
            queries = layer(queries, memory)
            out[f"head.dec{index}_query"] = queries.transpose(0, 1)
        prediction = module(unnormalized(case, "img"), text)
        torch.testing.assert_close(prediction.scores.flatten(2), out[f"head.dec{len(decoder.layers) - 1}_attn"])
        size = meta["decode_head"]["img_size"]
        out["head.pred"] = prediction.semantic_scores((size, size))

    if meta.get("test"):
        out |= compute_test(case, module, text)
    if "train.gt" in io:
        out |= compute_training(case, module)
    return {name: tensor for name, tensor in out.items() if name in io}


def unnormalized(case: Case, name: str) -> Tensor:
    """Recorded images are normalised already; the module does that itself."""
    mean, std = (torch.tensor(case.meta[key]).view(3, 1, 1) / 255 for key in ("norm_mean", "norm_std"))
    return case.io[name] * std + mean


@torch.no_grad()
def compute_test(case: Case, module: ZegCLIP, text: TextEmbeddings) -> dict[str, Tensor]:
    test, image = case.meta["test"], unnormalized(case, "test.img")
    size, original = tuple(test["test_hw"]), tuple(test["ori_hw"])
    inference: Inference = WholeImage()
    windows = [(0, 0, *size)]
    if test["mode"] == "slide":
        inference = RectangularWindow(test["crop_size"], test["stride"])
        windows = inference.windows(*size)
    predictions = [module(image[..., y1:y2, x1:x2], text) for y1, x1, y2, x2 in windows]
    scores = average_windows(predictions, windows, size)
    logits = resize(scores, original)
    labels = inference.labels(lambda crops: module(crops, text), image, original)
    return {
        "test.windows": torch.tensor(windows),
        "test.slide_mean": scores,
        "test.logits": logits,
        "test.prob": logits.softmax(1),
        "test.labels": labels[0],
    }


def compute_training(case: Case, module: ZegCLIP) -> dict[str, Tensor]:
    io, ignore_index = case.io, case.meta["loss"]["ignore_index"]
    module.train()
    semantic = io["train.gt"][:, 0].long()
    targets = module.training_classes.targets(semantic)
    hidden = (targets == ignore_index) & (semantic != ignore_index)
    mapped = torch.where(hidden, -1, semantic if module.self_training else targets)
    batch = {"image": unnormalized(case, "img"), "semantic": semantic, "id": ["0"] * len(semantic)}
    logits, labels = module.training_pair(batch)
    losses = module.losses(batch).weighted
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    names = [name.removeprefix("grad.") for name in io if name.startswith("grad.")]
    ours = dict(zip(names, official.rename({name: torch.empty(0) for name in names}), strict=True))
    found = {f"grad.{name}": gradient for name in names if (gradient := gradients[ours[name]]) is not None}
    return found | {
        "train.gt_mapped": mapped[:, None],
        "train.pred_masks": logits,
        "train.label_used": labels[:, None],
        "train.decode.loss_mask": losses["focal"].view(1),
        "train.decode.loss_dice": losses["dice"].view(1),
        "train.decode.acc_seg": pixel_accuracy(logits, labels, ignore_index).view(1),
        "train.loss_total": total.view(1),
    }
