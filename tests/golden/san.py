"""SAN: every intermediate of the forward pass, matching, losses and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextClassifier, TextEmbeddings
from ovsl.inference import MaskPrediction, WholeImage, resize
from ovsl.losses import MaskTargets, uncertain_points
from ovsl.methods.san import SAN, SANSizes
from ovsl.methods.san.official import convert, rename
from ovsl.methods.san.recognition import complete_bias_matrix, pool_biases, recognize_literally
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import Case
from tests.golden.replay import ReplayedDraws

INPUTS = [
    r"(eval|train)\.image\.\d+",
    r"train\.sem_seg\.\d+",
    r"train\..*\.(matcher_points\.\d+|loss_oversample_points|loss_random_points)",
    r"text\.(train_)?class_embeddings",  # only where the case has no text tower
]
NOT_COMPUTED: dict[str, str] = {}

STAND_IN = {"width": 8, "heads": 1, "layers": 1, "context_length": 77, "vocab_size": 49408}
"""A text tower for cases without one, whose text embeddings are given."""

KNOWN_KEYS = {
    "": """method case text_tower weights_dtype config activation pixel_mean pixel_std templates loss random_draw_order
        trainable_weight_decay trainable_without_gradient grad_norm_all_trainable losses total_loss
        float64_max_abs_difference tolerance parameters tensors weights""",
    "config": "clip_resolution size_divisibility postprocess_before_inference clip side eval train",
    "config.clip": "embed_dim feature_last_layer_idx vision_cfg text_cfg quick_gelu",
    "config.clip.vision_cfg": "layers width head_width patch_size image_size mlp_ratio",
    "config.clip.text_cfg": "width heads layers context_length vocab_size",
    "config.side": """patch_size width depth num_heads image_size num_queries fusion_map deep_supervision_idxs
        bias_heads bias_layers embed_channels mlp_channels mlp_num_layers rescale_attn_bias""",
    "config.eval": "image_sizes output_sizes class_names",
    "config.train": "batch crop image_sizes num_points class_names",
    "loss": """class_weight mask_weight dice_weight no_object_weight oversample_ratio importance_sample_ratio num_points
        names""",
    "parameters": "total trainable counted",
}


def build(case: Case) -> SAN:
    meta = case.meta
    case.check_keys(KNOWN_KEYS)
    config, loss = meta["config"], meta["loss"]
    clip, side = dict(config["clip"]), config["side"]
    assert meta["activation"].startswith("CLIP blocks use QuickGELU") == clip["quick_gelu"], meta["activation"]
    num_shallow_blocks = clip.pop("feature_last_layer_idx")
    clip["text_cfg"] = clip["text_cfg"] or STAND_IN
    features, places = zip(*(map(int, entry.split("->")) for entry in side["fusion_map"]), strict=True)
    sizes = SANSizes(
        num_shallow_blocks=num_shallow_blocks,
        fusion=dict(zip(places, features, strict=True)),
        width=side["width"],
        num_layers=side["depth"],
        num_heads=side["num_heads"],
        patch_size=side["patch_size"],
        image_size=side["image_size"],
        num_queries=side["num_queries"],
        hidden_width=side["mlp_channels"],
        embedding_dimension=side["embed_channels"],
        num_mlp_layers=side["mlp_num_layers"],
        bias_heads=side["bias_heads"],
        bias_layers=side["bias_layers"],
    )
    module = SAN(
        clip=CLIPSettings("golden", config=clip),
        sizes=sizes,
        clip_scale=config["clip_resolution"],
        supervised_blocks=tuple(side["deep_supervision_idxs"]),
        rescale_bias=side["rescale_attn_bias"],
        size_divisor=config["size_divisibility"],
        class_weight=loss["class_weight"],
        mask_weight=loss["mask_weight"],
        dice_weight=loss["dice_weight"],
        no_object_weight=loss["no_object_weight"],
        num_points=loss["num_points"],
        inference=WholeImage(resize_masks_first=config["postprocess_before_inference"]),
    )
    has_text = meta["config"]["clip"]["text_cfg"] is not None
    assert has_text == meta.get("text_tower", True)
    if has_text:
        module.text_classifier.templates = tuple(meta["templates"])
    module.criterion.oversample_ratio = loss["oversample_ratio"]
    module.criterion.importance_sample_ratio = loss["importance_sample_ratio"]
    for buffer, recorded in ((module.clip.mean, "pixel_mean"), (module.clip.std, "pixel_std")):
        buffer.copy_(torch.tensor(meta[recorded]).view(3, 1, 1) / 255)
    weights = case.weights
    if not has_text:
        stand_in = {n: p for n, p in module.clip.model.named_parameters() if not n.startswith("visual.")}
        weights = {f"ov_classifier.{name}": p.detach().clone() for name, p in stand_in.items()} | weights
    convert(weights, module)
    module.eval()
    return module


def named_vocabulary(names: list[str]) -> Vocabulary:
    """Names as they are: commas belong to them."""
    words = Vocabulary.from_words([f"class{i}" for i in range(len(names))])
    return replace(words, classes=tuple(names), synonyms=tuple((name,) for name in names), ignore_index=255)


def compute(case: Case) -> dict[str, Tensor]:
    module = build(case)
    meta, io = case.meta, case.io
    has_text = meta.get("text_tower", True)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == meta["parameters"]["trainable"]
    counted = [p for n, p in module.named_parameters() if has_text or is_not_text(n)]
    assert sum(p.numel() for p in counted) == meta["parameters"]["total"]
    check_weight_decay(module, meta["trainable_weight_decay"], trainable_names(module))
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        out |= evaluate(module, case, io)
    out |= train(module, case, io)
    return {name: tensor for name, tensor in out.items() if name in io}


def trainable_names(module: SAN) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def is_not_text(name: str) -> bool:
    return not name.startswith("clip.model.") or name.startswith(("clip.model.visual.", "clip.model.logit_scale"))


def give_text(module: SAN, vocabulary: Vocabulary, vectors: Tensor) -> None:
    """Let the classifier know the embeddings of a case that has no text tower."""
    embeddings = TextEmbeddings(vectors, torch.arange(len(vectors)), len(vectors))
    classifier = module.text_classifier
    assert isinstance(classifier, TextClassifier)
    classifier.remember(vocabulary, embeddings)
    assert torch.equal(module.text_classifier(vocabulary).vectors, vectors)


def check_weight_decay(module: SAN, recorded: dict[str, float], trainable: set[str]) -> None:
    names = {id(p): name for name, p in module.named_parameters()}
    ours = {names[id(p)]: g.get("weight_decay", 1e-4) for g in module.parameter_groups(1e-4) for p in g["params"]}
    official = rename({name: torch.tensor(decay, dtype=torch.float64) for name, decay in recorded.items()})
    assert ours.keys() == trainable
    assert ours == {name: float(decay) for name, decay in official.items()}


def evaluate(module: SAN, case: Case, io: dict[str, Tensor]) -> dict[str, Tensor]:
    config = case.meta["config"]
    options = config["eval"]
    vocabulary = named_vocabulary(options["class_names"])
    classifier, side = module.text_classifier, module.network.side_network
    out: dict[str, Tensor] = {}
    if case.meta.get("text_tower", True):
        tokens = module.clip.tokenize([classifier.templates[0].format(name) for name in vocabulary.classes])
        embeddings = functional.normalize(module.clip.encode_text(tokens), dim=1)
        out |= {"text.tokens_template0": tokens, "text.template0_embeddings": embeddings}
        out["text.class_embeddings"] = classifier(vocabulary).vectors
    else:
        give_text(module, vocabulary, io["text.class_embeddings"])
    text = classifier(vocabulary)
    out["text.classifier"] = module.text_rows(text)

    images = [io[f"eval.image.{i}"] for i in range(len(options["image_sizes"]))]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    assert sizes == [tuple(size) for size in options["image_sizes"]]
    height, width = (max(size) for size in zip(*sizes, strict=True))
    batch = torch.zeros(len(images), 3, height, width)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = module.clip.normalize(image)
    batch = module.pad(batch)

    watched: dict[str, Tensor] = {}
    hooks = [module.network.mask_decoder.register_forward_hook(lambda _m, _i, o: watched.update(biases=o[1]))]

    def watch(layer: nn.Module, name: str, take: Any) -> None:
        hooks.append(layer.register_forward_hook(lambda _m, _i, o: watched.__setitem__(name, take(o))))

    watch(side.patch_embedding, "eval.side_patch_tokens", lambda o: o.flatten(2).transpose(1, 2))
    num_queries = side.query_embedding.shape[1]
    for place, fusion in side.fusions.items():
        watch(fusion, f"eval.side_after_fuse.layer_{place}", lambda o: o[:, num_queries:])
    for index, block in enumerate(side.blocks):
        watch(block, f"eval.side_block.{index}", lambda o: o)
    prediction = module.predict_masks(batch, text)
    output = module.network(batch, module.text_rows(text))
    for hook in hooks:
        hook.remove()

    clip_input = module.network.clip_input(batch)
    num_shallow_blocks = module.network.num_shallow_blocks
    features = [tokens for tokens, _ in module.tower.intermediate_tokens(clip_input)]
    *_, (_, clip_grid) = module.tower.intermediate_tokens(clip_input)
    for index, tokens in enumerate(features[: num_shallow_blocks + 1]):
        out[f"eval.clip_feat.{index}"] = tokens[:, 1:].transpose(1, 2).unflatten(2, clip_grid)
    biases = watched.pop("biases")
    pooled = pool_biases(biases, clip_grid)
    shallow = features[num_shallow_blocks]
    torch.testing.assert_close(
        output.mask_embeddings, recognize_literally(module.tower, shallow, pooled, num_shallow_blocks)
    )
    logits = module.class_logits(output, text)
    torch.testing.assert_close(prediction.class_scores, logits.softmax(2)[..., :-1])
    out |= watched | {f"eval.attn_bias.{index}": layer for index, layer in enumerate(biases)}
    out |= {
        "eval.clip_input": clip_input,
        "eval.clip_cls_last": shallow[:, 0].unsqueeze(0),
        "eval.attn_bias_full.first_head": complete_bias_matrix(pooled)[0, 0, 0],
        "eval.mask_logits": prediction.mask_logits,
        "eval.mask_emb": output.mask_embeddings,
        "eval.class_logits": logits,
    }
    for index, (size, output_size) in enumerate(zip(sizes, map(tuple, options["output_sizes"]), strict=True)):
        one = MaskPrediction(
            prediction.mask_logits[index : index + 1], prediction.class_scores[index : index + 1], None,
            prediction.padded_size,
        )  # fmt: skip
        orders = {True: masks_first(one, size, output_size), False: resize(one.semantic_scores(size), output_size)[0]}
        first = config["postprocess_before_inference"]
        labels = module.inference.labels(lambda _images, one=one: one, images[index][None], output_size)
        out |= {
            f"eval.sem_seg.{index}": orders[first],
            f"eval.pred.{index}": labels[0],
            f"eval.sem_seg_other_order.{index}": orders[not first],
        }
    return out


def masks_first(prediction: MaskPrediction, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    logits = resize(prediction.resized_mask_logits(size), output_size)
    return replace(prediction, mask_logits=logits, padded_size=None).semantic_scores(output_size)[0]


def train(module: SAN, case: Case, io: dict[str, Tensor]) -> dict[str, Tensor]:
    options = case.meta["config"]["train"]
    count = options["batch"]
    vocabulary = named_vocabulary(options["class_names"])
    module.training_vocabulary = vocabulary
    if not case.meta.get("text_tower", True):
        give_text(module, vocabulary, io["text.train_class_embeddings"])
    batch = {
        "image": torch.stack([io[f"train.image.{i}"] for i in range(count)]),
        "semantic": torch.stack([io[f"train.sem_seg.{i}"] for i in range(count)]).long(),
    }
    num_levels = len(module.network.side_network.supervised_blocks)
    names = ["final", *(f"aux{i}" for i in range(num_levels - 1))]
    draws = {
        name: [
            torch.cat([io[f"train.{name}.matcher_points.{i}"] for i in range(count)]),
            io[f"train.{name}.loss_oversample_points"],
            io[f"train.{name}.loss_random_points"],
        ]
        for name in names
    }
    criterion, matched, seen = module.criterion, [], {}

    def recording_criterion(levels: Any, targets: MaskTargets) -> dict[str, Tensor]:
        seen.update(levels=levels, targets=targets)
        matching, sampling = [draws[name][:1] for name in names], [draws[name][1:] for name in names]
        replayed = ReplayedDraws([draw for level in (*matching, *sampling) for draw in level])
        losses = criterion(levels, targets, replayed)
        assert not replayed.draws
        return losses

    matcher = criterion.matcher

    def recording_matcher(*args: Any) -> Any:
        matched.extend(found := matcher(*args))
        return found

    criterion.matcher, module.criterion = recording_matcher, recording_criterion
    losses = module.losses(batch).weighted
    total = torch.stack(list(losses.values())).sum()
    total.backward()

    targets: MaskTargets = seen["targets"]
    *earlier, last = seen["levels"]
    out = {f"train.{name}": value.reshape(1) for name, value in losses.items()} | {"train.total_loss": total.reshape(1)}
    first = [sum(targets.counts[:i]) for i in range(count)]
    for i in range(count):
        out[f"train.gt_classes.{i}"] = targets.labels[first[i] : first[i] + targets.counts[i]]
    for name, (class_logits, mask_logits), pairs in zip(names, [last, *earlier], matched, strict=True):
        points = uncertain_points(
            mask_logits[pairs.image, pairs.query], criterion.num_points, criterion.oversample_ratio,
            criterion.importance_sample_ratio, ReplayedDraws(draws[name][1:]),
        )  # fmt: skip
        out |= {f"train.{name}.{k}": v for k, v in (("class_logits", class_logits), ("mask_logits", mask_logits))}
        out[f"train.{name}.loss_points"] = points
        for i in range(count):
            out[f"train.{name}.match_query.{i}"] = pairs.query[pairs.image == i]
            out[f"train.{name}.match_target.{i}"] = pairs.target[pairs.image == i] - first[i]

    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert abs(float(norm) / case.meta["grad_norm_all_trainable"] - 1) < 1e-4
    silent = set(rename({name: torch.zeros(1) for name in case.meta["trainable_without_gradient"]}))
    assert silent >= trainable_names(module) - gradients.keys()
    assert all(gradients[name].abs().max() == 0 for name in silent & gradients.keys())
    for name, recorded in io.items():
        if name.startswith("grad."):
            (ours,) = rename({name.removeprefix("grad."): recorded})
            out[name] = gradients[ours].reshape(recorded.shape)
    return out
