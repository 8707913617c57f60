"""FC-CLIP on ConvNeXt and ResNet towers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from ovsl.clip import CLIPSettings, ConvNeXtTower, TextEmbeddings
from ovsl.inference import MaskPrediction, WholeImage, resize
from ovsl.inference.instance import instances
from ovsl.inference.panoptic import panoptic_maps
from ovsl.layers import pad_to_multiple
from ovsl.layers.mask_decoder import attended_cells
from ovsl.losses import MaskTargets
from ovsl.methods.fc_clip import FCCLIP, FCCLIPSizes, MaskDecoderSizes, PixelDecoderSizes
from ovsl.methods.fc_clip.module import STRIDE, pooling_masks
from ovsl.methods.fc_clip.official import CLIP_PREFIX, convert, rename
from ovsl.methods.no_object import merge_names
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import Case, recorded_part
from tests.golden.replay import ReplayedDraws

INPUTS = [r"input/image_\d+", r"train/gt_(masks|classes)_\d+", r"train/rand/.*"]
NOT_COMPUTED: dict[str, str] = {}
TOLERANCES = {
    # The recorded mask logits come as close to 0 as 3e-6, so rounding turns single pixels of full-size maps ...
    r"out/(panoptic_seg|instance_masks)_\d+": 1e-3,
    # ... and an instance's score, a mean over its mask, moves by about half a pixel's share.
    r"out/instance_scores_\d+": 2e-3,
    r"train/grad/.*": 1e-3,
}

KNOWN_KEYS = {
    "": "method case public text_tower weights_dtype config tolerance weights tensors",
    "config": """clip backbone_channels pixel_decoder predictor pixel_mean pixel_std size_divisibility templates
        train_classes train_thing_indices test_classes test_thing_indices test_num_synonyms train_num_synonyms ensemble
        inference criterion""",
    "config.clip": "kind embed_dim image_size quick_gelu text visual",
    "config.clip.text": "included context_length vocab_size tokenizer width heads layers",
    "config.clip.visual": "type depths dims layer_norm_eps head layers width attention_pool_heads attention_pool_grid",
    "config.pixel_decoder": "conv_dim mask_dim num_heads num_points num_levels ffn_dim num_layers norm dropout",
    "config.predictor": """hidden_dim num_heads ffn_dim num_layers num_queries pre_norm clip_embedding_dim
        enforce_input_project""",
    "config.ensemble": "alpha beta on_valid_mask log_eps",
    "config.inference": "object_mask_threshold overlap_threshold topk_per_image images",
    "config.criterion": """num_points oversample_ratio importance_sample_ratio no_object_weight class_weight mask_weight
        dice_weight deep_supervision matching_costs""",
    "config.criterion.matching_costs": "cls mask dice",
}


def clip_config(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    visual, text = config["visual"], config["text"]
    if config["kind"] == "convnext":
        assert visual["layer_norm_eps"] == 1e-6
        vision = {"image_size": config["image_size"], "convnext": {k: visual[k] for k in ("depths", "dims")}}
        # The smaller ConvNeXt CLIPs project with one matrix.
        vision["timm_proj"] = "linear" if f"{CLIP_PREFIX}visual.head.proj.weight" in weights else "mlp"
    else:
        assert config["kind"] == "resnet", config["kind"]
        heads = visual["attention_pool_heads"]
        assert visual["attention_pool_grid"] * 32 == config["image_size"]
        vision = {
            "image_size": config["image_size"],
            "layers": visual["layers"],
            "width": visual["width"],
            "head_width": visual["width"] * 32 // heads,
        }
    sizes = {key: text[key] for key in ("context_length", "vocab_size", "width", "heads", "layers")}
    return {"embed_dim": config["embed_dim"], "vision_cfg": vision, "text_cfg": sizes}


def build(case: Case) -> FCCLIP:
    """The module that a user would configure, with the case's weights."""
    config, weights = case.meta["config"], case.weights
    case.check_keys(KNOWN_KEYS)
    pixel, decoder, criterion = config["pixel_decoder"], config["predictor"], config["criterion"]
    assert pixel["num_levels"] == 3
    assert "32 groups" in pixel["norm"]
    assert pixel["dropout"] == 0
    assert pixel["mask_dim"] == decoder["hidden_dim"]
    assert not decoder["pre_norm"]
    assert not decoder.get("enforce_input_project")
    assert config["size_divisibility"] == STRIDE
    assert config["ensemble"]["log_eps"] == 1e-8
    assert criterion["deep_supervision"]
    assert decoder["clip_embedding_dim"] == config["clip"]["embed_dim"]
    module = FCCLIP(
        clip=CLIPSettings("golden", None, config["clip"]["quick_gelu"], clip_config(config["clip"], weights)),
        sizes=FCCLIPSizes(
            PixelDecoderSizes(
                *(pixel[key] for key in ("conv_dim", "num_heads", "num_points", "num_layers", "ffn_dim"))
            ),
            MaskDecoderSizes(
                *(decoder[key] for key in ("hidden_dim", "num_queries", "num_heads", "num_layers", "ffn_dim"))
            ),
        ),
        seen_exponent=config["ensemble"]["alpha"],
        unseen_exponent=config["ensemble"]["beta"],
        ensemble_on_valid_masks=config["ensemble"]["on_valid_mask"],
        class_weight=criterion["class_weight"],
        mask_weight=criterion["mask_weight"],
        dice_weight=criterion["dice_weight"],
        no_object_weight=criterion["no_object_weight"],
        num_points=criterion["num_points"],
    )
    costs = criterion["matching_costs"]
    matcher = module.criterion.matcher
    matcher.class_weight, matcher.mask_weight, matcher.dice_weight = costs["cls"], costs["mask"], costs["dice"]
    module.criterion.oversample_ratio = criterion["oversample_ratio"]
    module.criterion.importance_sample_ratio = criterion["importance_sample_ratio"]

    clip = module.clip
    frozen = {k.removeprefix(CLIP_PREFIX): v for k, v in weights.items() if k.startswith(CLIP_PREFIX)}
    missing, unexpected = clip.model.load_state_dict(frozen, strict=False)
    assert not unexpected, unexpected
    has_text = any(name.startswith("transformer.") for name in frozen)
    counters = {name for name in missing if name.endswith("num_batches_tracked")}
    assert all(not name.startswith("visual.") for name in set(missing) - counters), missing
    assert not has_text or not set(missing) - counters, missing
    empty_weight = weights["criterion.empty_weight"]
    assert empty_weight[-1] == torch.tensor(criterion["no_object_weight"])
    assert (empty_weight[:-1] == 1).all()
    if not has_text:
        # The module then has to hold what the file lacks, and the rest is compared.
        clip.pretrained = "golden"
    convert(weights, module)
    clip.mean.copy_(torch.tensor(config["pixel_mean"]).view(3, 1, 1) / 255)
    clip.std.copy_(torch.tensor(config["pixel_std"]).view(3, 1, 1) / 255)
    module.text_classifier.templates = tuple(config["templates"])
    return module.eval()


def vocabulary_of(classes: list[str], things: list[int]) -> Vocabulary:
    synonyms = tuple(tuple(entry.replace(", ", ",").split(",")) for entry in classes)
    names = tuple(f"{group[0]} {index}" for index, group in enumerate(synonyms))
    palette = ((0, 0, 0),) * len(classes)
    return Vocabulary("golden", names, synonyms, None, tuple(i in things for i in range(len(classes))), palette, 255)


def recorded_draws(io: dict[str, Tensor], num_levels: int, num_images: int, num_points: int) -> ReplayedDraws:
    """The recorded draws in the order in which the criterion asks for them."""
    names = ["final", *(f"aux{i}" for i in range(num_levels - 1))]
    # The matching points of an image without targets match nothing, and may be left out.
    unused = torch.zeros(1, num_points, 2)
    matching = [
        torch.cat([io.get(f"train/rand/{name}/match_{i}", unused) for i in range(num_images)]) for name in names
    ]
    kinds = ("oversample", "random")
    return ReplayedDraws(
        [*matching, *(io.get(f"train/rand/{name}/{kind}", torch.zeros(0)) for name in names for kind in kinds)]
    )


def compute(case: Case) -> dict[str, Tensor]:
    config, io = case.meta["config"], case.io
    module = build(case)
    clip, network = module.clip, module.network
    out: dict[str, Tensor] = {}
    training = vocabulary_of(config["train_classes"], config["train_thing_indices"])
    testing = vocabulary_of(config["test_classes"], config["test_thing_indices"])
    assert [len(group) for group in testing.synonyms] == config["test_num_synonyms"]
    assert [len(group) for group in training.synonyms] == config["train_num_synonyms"]
    module.training_vocabulary = training
    testing = testing.with_seen_from(training)

    # Text
    has_text = "text/test_tokens" in io
    assert has_text == case.meta.get("text_tower", True)
    if has_text:
        tokens = clip.tokenize(module.text_classifier.prompts(testing.synonyms))
        out |= {"text/test_tokens": tokens, "text/test_prompt_features": clip.encode_text(tokens)}
        text, training_text = module.text_classifier(testing), module.training_classes.text()
    else:
        clip.encode_text = lambda tokens: io["text/test_prompt_features"]  # type: ignore[method-assign]
        text = module.text_classifier(testing)
        out["text/test_prompt_features"] = io["text/test_prompt_features"]
        counts = torch.tensor(config["train_num_synonyms"])
        class_index = torch.repeat_interleave(torch.arange(len(counts)), counts)
        training_text = TextEmbeddings(io["text/train_classifier"], class_index, len(counts))
    assert text.seen is not None
    void = functional.normalize(network.void_embedding, dim=-1)
    out |= {
        "text/test_classifier": text.vectors,
        "text/test_classifier_with_void": torch.cat([text.vectors, void]),
        "text/category_overlapping_mask": text.seen.int(),
        "text/train_classifier": training_text.vectors,
    }

    # Forward
    images = [io[f"input/image_{i}"] for i in range(len(config["inference"]["images"]))]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    normalized = [clip.normalize(image) for image in images]
    batch = torch.stack([functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in normalized])
    padded = pad_to_multiple(batch, STRIDE)
    out["input/padded"] = padded
    record = Recorder(module)
    with torch.no_grad():
        features = module.backbone_features(padded)
        last = network(features, text.vectors, auxiliary=True)
        predictions = [(merge_names(one.class_logits, text), one.mask_logits) for one in (*last.auxiliary, last)]
        out |= {f"backbone/res{i}": feature for i, feature in enumerate(features, start=2)}
        out |= record.close()
        levels = [(f.shape[2], f.shape[3]) for f in features[:0:-1]]
        for i, (class_logits, mask_logits) in enumerate(predictions):
            out[f"predictor/pred_logits_{i}"] = class_logits
            out[f"predictor/pred_masks_{i}"] = mask_logits
            out[f"predictor/attn_mask_{i}"] = (~attended_cells(mask_logits, levels[i % 3])).byte()
        class_logits, mask_logits = predictions[-1]
        out |= ensemble_tensors(module, features[-1], class_logits, mask_logits, text)
        padded_size = (padded.shape[2], padded.shape[3])
        prediction = module.ensemble(features[-1], class_logits, mask_logits, text, padded_size)
        if "ensemble/valid_mask" in io:
            clear_meaningless(out, io, module)
        final = torch.cat([prediction.class_scores, prediction.no_object_scores.unsqueeze(-1)], dim=-1)
        out |= {"ensemble/final_probs": final, "ensemble/mask_cls": mask_cls(final)}

        if len(images) == 1:
            whole = module(images[0][None], text)
            torch.testing.assert_close(whole.class_scores, prediction.class_scores)
            torch.testing.assert_close(whole.mask_logits, prediction.mask_logits)
            assert whole.padded_size == prediction.padded_size

        for i, (size, entry) in enumerate(zip(sizes, config["inference"]["images"], strict=True)):
            assert size == (entry["height"], entry["width"])
            original = (entry["output_height"], entry["output_width"])
            one = MaskPrediction(mask_logits[i : i + 1], prediction.class_scores[i : i + 1], final[i : i + 1, :, -1])
            one = replace(one, padded_size=padded_size)
            out |= outputs(one, size, original, testing, case, i)

    out |= training_tensors(case, module, padded, training_text)
    return {name: tensor for name, tensor in out.items() if name in io}


class Recorder:
    """Collects intermediate tensors of the decoders, named as recorded."""

    def __init__(self, module: FCCLIP) -> None:
        self.tensors: dict[str, Tensor] = {}
        pixel, decoder = module.network.pixel_decoder, module.network.mask_decoder
        self.handles = [self.hook(pixel.mask_features, "pixel_decoder/mask_features")]
        for i, projection in enumerate(pixel.input_projections):
            self.handles.append(self.hook(projection, f"pixel_decoder/input_proj_{i}"))
        for i, layer in enumerate(pixel.layers):
            self.handles.append(self.hook(layer.attention, f"pixel_decoder/enc_{i}_attn"))
            self.handles.append(self.hook(layer, f"pixel_decoder/enc_{i}"))
        for i, layer in enumerate(decoder.layers):
            for ours, name in (("cross_attention", "cross"), ("self_attention", "self"), ("feed_forward", "ffn")):
                norm = getattr(layer, f"{ours}_norm")
                self.handles.append(self.hook(norm, f"predictor/layer_{i}_{name}", sequence_first=True))

    def hook(self, part: torch.nn.Module, name: str, sequence_first: bool = False) -> Any:
        def record(_: Any, __: Any, output: Tensor) -> None:
            self.tensors[name] = output.transpose(0, 1) if sequence_first else output

        return part.register_forward_hook(record)

    def close(self) -> dict[str, Tensor]:
        for handle in self.handles:
            handle.remove()
        return self.tensors


def ensemble_tensors(
    module: FCCLIP, coarsest: Tensor, class_logits: Tensor, mask_logits: Tensor, text: TextEmbeddings
) -> dict[str, Tensor]:
    masks = pooling_masks(mask_logits, coarsest)
    frozen_logits = module.out_of_vocabulary_logits(coarsest, masks, text)
    return {
        "ensemble/mask_for_pooling": resize(mask_logits, (coarsest.shape[2], coarsest.shape[3])),
        "ensemble/pooled_clip_embedding": module.tower.embed_masks(coarsest, masks),
        "ensemble/out_vocab_logits": frozen_logits,
        "ensemble/in_vocab_probs": class_logits[..., :-1].softmax(-1),
        "ensemble/out_vocab_probs": frozen_logits[..., :-1].softmax(-1),
        "ensemble/void_prob": class_logits.softmax(-1)[..., -1:],
        "ensemble/valid_mask": masks.flatten(2).any(-1).byte(),
    }


def clear_meaningless(out: dict[str, Tensor], io: dict[str, Tensor], module: FCCLIP) -> None:
    """Empty masks under attention pooling: the official value depends on the PyTorch version and is never used."""
    if isinstance(module.tower, ConvNeXtTower):
        return
    empty = io["ensemble/valid_mask"] == 0
    for name in ("pooled_clip_embedding", "out_vocab_logits", "out_vocab_probs"):
        key = f"ensemble/{name}"
        assert out[key].isfinite().all()
        out[key] = torch.where(empty.unsqueeze(-1), io[key], out[key])


def mask_cls(final: Tensor) -> Tensor:
    """Official logarithm before the last softmax: of the probabilities plus epsilon, which sum to 1 + (K + 1) eps."""
    return (final * (1 + final.shape[-1] * 1e-8)).log()


def outputs(
    one: MaskPrediction,
    size: tuple[int, int],
    original: tuple[int, int],
    vocabulary: Vocabulary,
    case: Case,
    i: int,
) -> dict[str, Tensor]:
    things, options = vocabulary.things, case.meta["config"]["inference"]
    assert things is not None
    resized = replace(one, mask_logits=resize(one.resized_mask_logits(size), original), padded_size=None)
    first, last = resized.semantic_scores(original)[0], resize(one.semantic_scores(size), original)[0]
    for scores, resize_masks_first in ((first, True), (last, False)):
        # The map that users get, from bands of rows, is the arg-max of the recorded scores.
        image = torch.zeros(1, 3, *size)
        labels = WholeImage(resize_masks_first).labels(lambda _: one, image, original)
        assert (labels[0] == scores.argmax(0)).float().mean() > 0.999
    panoptic = panoptic_maps(
        one, size, original, things, options["object_mask_threshold"], options["overlap_threshold"], 3
    )[0]
    rows = [[n, c, int(things[c])] for n, c in enumerate(panoptic.classes.tolist(), start=1)]
    found = instances(one, size, original, things, options["topk_per_image"], 3)[0]
    tensors = {
        f"out/sem_seg_{i}": first,
        f"out/sem_seg_semantic_only_{i}": last,
        f"out/panoptic_seg_{i}": panoptic.segment_ids,
        f"out/panoptic_segments_{i}": torch.tensor(rows, dtype=torch.int64).reshape(-1, 3),
    }
    # An unsorted top-k was recorded: bring ours into its order before comparing.
    order = match_instances(found.labels, found.scores, found.masks, case, i)
    return tensors | {
        f"out/instance_scores_{i}": found.scores[order],
        f"out/instance_classes_{i}": found.labels[order],
        f"out/instance_masks_{i}": found.masks[order].byte(),
    }


def match_instances(labels: Tensor, scores: Tensor, masks: Tensor, case: Case, i: int) -> Tensor:
    """Places of our instances in the order of the recorded ones."""
    io, name = case.io, f"out/instance_masks_{i}"
    if f"out/instance_scores_{i}" not in io:
        return torch.arange(len(labels))
    distance = torch.zeros(len(io[f"out/instance_scores_{i}"]), len(labels))
    assert distance.shape[0] == distance.shape[1], f"{len(labels)} instances, {len(distance)} recorded"
    if name in io:
        own = recorded_part(case, name, masks, io[name].shape).flatten(1).float()
        distance = torch.cdist(io[name].flatten(1).float(), own, p=1) / max(own.shape[1], 1)
    distance = distance + (io[f"out/instance_classes_{i}"][:, None] != labels) * 10.0
    distance = distance + (io[f"out/instance_scores_{i}"][:, None] - scores).abs()
    return torch.from_numpy(linear_sum_assignment(distance.numpy())[1])


def training_tensors(case: Case, module: FCCLIP, padded: Tensor, text: TextEmbeddings) -> dict[str, Tensor]:
    io = case.io
    num_levels = case.meta["config"]["predictor"]["num_layers"] + 1
    labels, masks = [], []
    for i in range(len(padded)):
        mask = io[f"train/gt_masks_{i}"].bool()
        labels.append(io[f"train/gt_classes_{i}"].long())
        masks.append(functional.pad(mask, (0, padded.shape[3] - mask.shape[2], 0, padded.shape[2] - mask.shape[1])))
    targets = MaskTargets(torch.cat(labels), torch.cat(masks), tuple(map(len, labels)))
    draw = recorded_draws(io, num_levels, len(padded), case.meta["config"]["criterion"]["num_points"])
    out: dict[str, Tensor] = {}
    matches, points = spy(module)
    module.train()
    losses = module.set_losses(padded, text, targets, draw)
    assert not draw.draws
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    out["train/loss_total"] = total
    out |= {f"train/loss/{name}": value for name, value in losses.items()}
    with torch.no_grad():
        output = module.network(module.backbone_features(padded), text.vectors)
    class_logits, mask_logits = merge_names(output.class_logits, text), output.mask_logits
    out |= {"train/pred_logits": class_logits, "train/pred_masks": mask_logits}
    first = [sum(targets.counts[:i]) for i in range(len(targets.counts))]
    for name, found, places in zip(
        ["final", *(f"aux{i}" for i in range(num_levels - 1))], matches, points, strict=True
    ):
        out[f"train/points/{name}"] = places
        for i in range(len(padded)):
            here = found.image == i
            out[f"train/match/{name}/src_{i}"] = found.query[here]
            out[f"train/match/{name}/tgt_{i}"] = found.target[here] - first[i]
    parameters = dict(module.named_parameters())
    for key in io:
        if key.startswith("train/grad/"):
            (name,) = rename({key.removeprefix("train/grad/"): torch.empty(0)})
            gradient = parameters[name].grad
            out[key] = torch.zeros_like(parameters[name]) if gradient is None else gradient
    frozen = [name for name, parameter in module.clip.named_parameters() if parameter.grad is not None]
    assert not frozen, f"gradient in the frozen CLIP: {frozen[:3]}"
    return out


def spy(module: FCCLIP) -> tuple[list[Any], list[Tensor]]:
    """Collect what the matcher and the point sampler decide."""
    from ovsl.losses import mask_set

    matches: list[Any] = []
    points: list[Tensor] = []
    matcher, sampler = module.criterion.matcher, mask_set.uncertain_points

    def match(*args: Any) -> Any:
        matches.extend(found := matcher(*args))
        return found

    def sample(*args: Any) -> Tensor:
        points.append(sampler(*args))
        return points[-1]

    module.criterion.matcher = match  # type: ignore[assignment]
    mask_set.uncertain_points = sample  # type: ignore[assignment]
    return matches, points
