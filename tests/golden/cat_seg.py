"""CAT-Seg: every intermediate of training, sliding-window and whole-image evaluation, the loss and its gradients."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.clip.blocks import run_block
from ovsl.inference import Inference
from ovsl.methods.cat_seg import CATSeg, CATSegSizes, official
from ovsl.methods.cat_seg.inference import StretchedWholeImage, WindowsAndGlobalView
from ovsl.methods.cat_seg.network import run_class_residual_block
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import Case

INPUTS = [r"train\.(image|sem_seg)\.\d+", r"eval\.image"]
NOT_COMPUTED: dict[str, str] = {}

KNOWN_KEYS = {
    "": """method case weights_dtype config activation templates tokens text_synonyms pixel_mean pixel_std ignore_index
        loss parameter_groups trainable_without_gradient trainable_with_zero_gradient grad_norm_all_trainable parameters
        float64_difference smallest_gaps tolerance tensors""",
    "config": """clip_resolution guidance_layers clip aggregator train eval size_divisibility prompt_ensemble_type
        clip_finetune""",
    "config.clip": "embed_dim vision_cfg text_cfg",
    "config.clip.vision_cfg": "layers width head_width patch_size image_size mlp_ratio",
    "config.clip.text_cfg": "width heads layers context_length vocab_size",
    "config.aggregator": """text_guidance_proj_dim appearance_guidance_proj_dim decoder_dims decoder_guidance_dims
        decoder_guidance_proj_dims num_layers num_heads hidden_dim window_size attention_type pad_len
        feature_resolution""",
    "config.train": "crop image_sizes pooling_sizes class_names",
    "config.eval": "image_size output_size kernel overlap out_res pooling_sizes num_foreground class_names",
    "loss": "loss_sem_seg",
    "parameter_groups": "groups",
    "parameters": "total trainable state_dict_tensors",
}
TRAIN_CLIP = {
    "attention": ("attn.q_proj_weight", "attn.v_proj_weight"),
    "full": ("transformer", "attn.q_proj_weight"),  # the second, so that attention is split
}
"""Official modes of fine-tuning; with any other CLIP is frozen."""


def check_form(case: Case) -> None:
    """Stop at anything that the case asks for and that would otherwise be passed over."""
    case.check_keys(KNOWN_KEYS)
    config = case.meta["config"]
    assert config["prompt_ensemble_type"] == "single"
    assert config["clip_finetune"] != "prompt"
    patch = config["clip"]["vision_cfg"]["patch_size"]
    assert [side // patch for side in config["clip_resolution"]] == config["aggregator"]["feature_resolution"]
    activation = case.meta["activation"]
    assert activation.startswith("CLIP: QuickGELU x*sigmoid(1.702x); Swin MLP: exact GELU; class MLP: ReLU."), (
        activation
    )


def build(case: Case) -> CATSeg:
    """The module of a case, with its weights; classes go through in chunks of two where nothing is differentiated."""
    meta = case.meta
    config, aggregator = meta["config"], meta["config"]["aggregator"]
    out_res = config["eval"]["out_res"]
    assert out_res[0] == out_res[1]
    module = CATSeg(
        clip=CLIPSettings("golden", quick_gelu=True, config=config["clip"]),
        sizes=CATSegSizes(
            input_size=tuple(config["clip_resolution"]),
            guidance_blocks=tuple(config["guidance_layers"]),
            guidance_widths=tuple(aggregator["decoder_guidance_dims"]),
            decoder_guidance_widths=tuple(aggregator["decoder_guidance_proj_dims"]),
            appearance_width=aggregator["appearance_guidance_proj_dim"],
            text_width=aggregator["text_guidance_proj_dim"],
            width=aggregator["hidden_dim"],
            num_layers=aggregator["num_layers"],
            num_heads=aggregator["num_heads"],
            window_size=aggregator["window_size"],
            class_attention=aggregator["attention_type"],
            max_classes=aggregator["pad_len"],
            decoder_widths=tuple(aggregator["decoder_dims"]),
            pooling=tuple(config["train"]["pooling_sizes"]),
            evaluation_pooling=tuple(config["eval"]["pooling_sizes"]),
        ),
        class_chunk_size=2,
        size_divisor=config["size_divisibility"],
        train_clip=TRAIN_CLIP.get(config["clip_finetune"], ()),
        inference=WindowsAndGlobalView(
            out_res[0], config["eval"]["kernel"], config["eval"]["overlap"], class_chunk_size=2
        ),
    )
    module.text_classifier.templates = tuple(meta["templates"])
    for buffer, recorded in ((module.clip.mean, "pixel_mean"), (module.clip.std, "pixel_std")):
        buffer.copy_(torch.tensor(meta[recorded]).view(3, 1, 1) / 255)
    official.convert(case.weights, module)
    return module


def compute(case: Case) -> dict[str, Tensor]:
    check_form(case)
    module = build(case)
    recorded = case.meta["parameters"]
    assert sum(p.numel() for p in module.parameters()) == recorded["total"]
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == recorded["trainable"]
    check_groups(module, case.meta["parameter_groups"]["groups"])
    out = train(module, case)
    with torch.no_grad():
        out |= evaluate(module, case)
    return {name: tensor for name, tensor in out.items() if name in case.io}


def check_groups(module: CATSeg, recorded: dict[str, list[str]]) -> None:
    optimizer = module.optimizer(list(module.parameter_groups(2e-4)))
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    ours = {name: settings[id(p)] for name, p in module.named_parameters() if p.requires_grad}
    theirs = {}
    for title, names in recorded.items():
        rate, decay = title.removeprefix("lr ").split(", weight decay ")
        theirs |= dict.fromkeys(official.rename(dict.fromkeys(names, torch.empty(0))), (float(rate), float(decay)))
    assert len(optimizer.param_groups) == len(recorded)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(torch.tensor(ours[name]), torch.tensor(theirs[name])) for name in ours)


def vocabulary_of(module: CATSeg, case: Case, part: str) -> Vocabulary:
    """The classes of a part, and for a text tower with other words the recorded tokens."""
    names = case.meta["config"][part]["class_names"]
    split = [tuple(name.split(", ")) for name in names]
    words = Vocabulary.from_words([f"class{i}" for i in range(len(names))])
    words = replace(words, classes=tuple(s[0] for s in split), synonyms=tuple(split), ignore_index=255)
    if "given" in case.meta["tokens"]:
        tokens = case.io[f"{part}.text.tokens"].long()
        module.clip.tokenize = lambda prompts: tokens  # type: ignore[method-assign]
    return words


def observe(prefix: str, module: CATSeg, images: Tensor, text: TextEmbeddings, run: Any) -> dict[str, Tensor]:
    """Run something and watch all that goes on in the network meanwhile."""
    network, parts, hooks = module.network, defaultdict(list), []

    def watch(part: nn.Module, name: str) -> None:
        hooks.append(part.register_forward_hook(lambda _m, _i, o: parts[name].append(o)))

    for index, layer in enumerate(network.layers):
        watch(layer.spatial.blocks[0], f"layer.{index}.swin_block_1")
        watch(layer.spatial.blocks[1], f"layer.{index}.swin_block_2")
        watch(layer.classes.attention, f"layer.{index}.class_attention")
        watch(layer, f"layer.{index}.output")
    watch(network.decoder[0], "decoder1")
    watch(network.decoder[1], "decoder2")
    watch(network, "network")
    out: dict[str, Tensor] = run()
    for hook in hooks:
        hook.remove()
    output = parts.pop("network")[0]
    num_classes = output.costs.shape[1] if output.selected is None else output.selected.shape[1]
    for name, chunks in parts.items():
        found = torch.cat(chunks, dim=1)
        if "class_attention" in name:
            # One padding row stands for all.
            missing = max(network.sizes.max_classes - num_classes, 0)
            last = found[:, :, num_classes:].expand(-1, -1, missing, -1)
            found = torch.cat([found[:, :, :num_classes], last], dim=2)
        elif name.startswith("layer"):
            found = found.permute(0, 4, 1, 2, 3)
        out[f"{prefix}.{name}"] = found

    tokens, grid = module.tower.stem(images)
    out |= {f"{prefix}.clip_input": images, f"{prefix}.clip.ln_pre": tokens}
    blocks, features = module.tower.blocks, []
    for index, block in enumerate(blocks):
        is_last = index == len(blocks) - 1
        tokens = run_class_residual_block(block, tokens) if is_last else run_block(block, tokens)
        out[f"{prefix}.clip.block.{index}"] = tokens
        features.append(tokens[:, 1:].transpose(1, 2).unflatten(2, grid))
    dense = module.tower.project(tokens)
    out |= {f"{prefix}.clip.dense": dense, f"{prefix}.correlation": output.costs[:, None]}
    dense = dense[:, 1:].transpose(1, 2).unflatten(2, grid)
    guiding = [features[index] for index in network.sizes.guidance_blocks]
    for index, (upsample, maps) in enumerate(zip(network.upsample, guiding, strict=True)):
        out[f"{prefix}.upsample{index + 1}"] = upsample(maps)
    for index, guidance in enumerate(network.decoder_guidance(guiding)):
        if guidance is not None:
            out[f"{prefix}.decoder_guidance.{index}"] = guidance[:, 0]
    rows, costs = text.vectors.expand(len(images), -1, -1), output.costs
    if output.selected is not None:
        out[f"{prefix}.selected_classes"] = output.selected
        rows = text.vectors[output.selected]
        costs = torch.stack([one[selected] for one, selected in zip(costs, output.selected, strict=True)])
    appearance, words = network.appearance_guidance(dense), network.text_guidance(rows)
    if appearance is not None:
        out[f"{prefix}.appearance_guidance"] = appearance[:, 0].permute(0, 3, 1, 2)
    if words is not None:
        out[f"{prefix}.text_guidance"] = words[:, 0]
    return out | {
        f"{prefix}.cost_embedding": network.embed_costs(costs).permute(0, 4, 1, 2, 3),
        f"{prefix}.logits": output.logits,
        f"{prefix}.text.embeddings": text.vectors,
    }


def tokens_of(module: CATSeg, vocabulary: Vocabulary) -> Tensor:
    return module.clip.tokenize(module.text_classifier.prompts([(name,) for name in vocabulary.classes]))


def train(module: CATSeg, case: Case) -> dict[str, Tensor]:
    io, options = case.io, case.meta["config"]["train"]
    module.train()
    module.training_vocabulary = vocabulary = vocabulary_of(module, case, "train")
    count = len(options["image_sizes"])
    batch = {
        "image": torch.stack([io[f"train.image.{i}"] for i in range(count)]),
        "semantic": torch.stack([io[f"train.sem_seg.{i}"] for i in range(count)]).long(),
        "id": [str(i) for i in range(count)],
    }
    assert case.meta["ignore_index"] == vocabulary.ignore_index
    images = module.network_input(batch["image"], module.size_divisor)
    with torch.no_grad():
        text = module.training_classes.text()

    def run() -> dict[str, Tensor]:
        (loss,) = module.losses(batch).weighted.values()
        loss.backward()
        return {"train.loss": loss.detach().view(1)}

    out = observe("train", module, images, text, run)
    assert abs(float(out["train.loss"]) - case.meta["loss"]["loss_sem_seg"]) < 1e-5
    out["train.text.tokens"] = tokens_of(module, vocabulary)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    check_gradients(gradients, case.meta)
    names = [name.removeprefix("grad.") for name in io if name.startswith("grad.")]
    ours = official.rename(dict.fromkeys(names, torch.empty(0)))
    return out | {f"grad.{name}": gradients[our_name] for name, our_name in zip(names, ours, strict=True)}


def check_gradients(gradients: dict[str, Tensor | None], meta: dict[str, Any]) -> None:
    """Which parameters have none, which one of zero, and the norm of all together."""
    official_names = ("trainable_without_gradient", "trainable_with_zero_gradient")
    none, zero = (set(official.rename(dict.fromkeys(meta[names], torch.empty(0)))) for names in official_names)
    found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    assert gradients.keys() - found.keys() == none
    assert {name for name, gradient in found.items() if not gradient.any()} == zero
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert abs(float(norm) / meta["grad_norm_all_trainable"] - 1) < 1e-4


def evaluate(module: CATSeg, case: Case) -> dict[str, Tensor]:
    options = case.meta["config"]["eval"]
    module.eval()
    vocabulary = vocabulary_of(module, case, "eval")
    text = module.text_classifier(vocabulary)
    image, size = case.io["eval.image"][None], tuple(options["output_size"])
    assert list(image.shape[2:]) == options["image_size"]
    windows, whole = module.inference, StretchedWholeImage(module.size_divisor, module.clip.mean.flatten().tolist(), 2)
    assert isinstance(windows, WindowsAndGlobalView)
    modes: list[tuple[str, Inference, Tensor]] = [
        ("eval", windows, windows.views(image)),
        ("eval.whole", whole, whole.pad(image)),
    ]
    out = {"eval.text.tokens": tokens_of(module, vocabulary)}
    for prefix, inference, views in modes:

        def predict(images: Tensor) -> Any:
            return module(images, text)

        def run(prefix: str = prefix, inference: Any = inference) -> dict[str, Tensor]:
            return {f"{prefix}.sem_seg": inference.scores(predict, image, size)[0]}

        out |= observe(prefix, module, module.network_input(views), text, run)
        labels = inference.labels(predict, image, size)[0]
        out |= {f"{prefix}.pred": labels, f"{prefix}.pred_background": labels.clamp(max=options["num_foreground"])}
    return out
