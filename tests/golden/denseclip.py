"""DenseCLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.inference import average_windows, resize
from ovsl.inference.multi_scale import MultiScale
from ovsl.methods.denseclip import ContextDecoderSizes, DenseCLIP, DenseCLIPSizes, official
from ovsl.methods.denseclip.network import DenseCLIPNetwork
from ovsl.methods.denseclip.text import ContextTextClassifier
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import Case
from tests.golden.windows import RectangularWindow

INPUTS = ["image", "slide_image", "gt", "text_embeddings_raw"]  # the last where the case has no text tower
NOT_COMPUTED: dict[str, str] = {}

KNOWN_OPTIONS = {
    "": """method reference text_tower omitted_weights weights_dtype config normalisation fixed tolerance
        without_gradient tensors weights""",
    "config": """tau kind width layers heads patch_size embed_dim input_resolution class_names context_length
        text_context_length text_width text_heads text_layers decoder_width decoder_heads decoder_layers fpn_channels
        head_channels score_concat_index slide_crop slide_stride batch image_size slide_image_size slide_ori_shape seed
        out_indices drop_path_rate get_embeddings output_dim""",
    "fixed": """attnpool_heads vocab_size text_activation identity_loss_weight ignore_index align_corners head_dropout
        decoder_dropout norm layer_norm_eps patch_size out_indices drop_path_rate vit_activation vit_drop_path
        drop_path mlp_ratio vit_mlp_ratio group_norm_eps vit_patch_size heads vit_heads activation image_activation""",
}


def check_options(case: Case) -> None:
    """Stop at anything that the case asks for and that would otherwise be passed over."""
    case.check_keys(KNOWN_OPTIONS)
    meta = case.meta
    config, fixed = meta["config"], meta["fixed"]
    assert config["kind"] in ("resnet", "vit"), config["kind"]
    assert config["score_concat_index"] == {"resnet": 3, "vit": 2}[config["kind"]]
    assert "QuickGELU" in fixed["text_activation"]
    assert (fixed["ignore_index"], fixed["align_corners"], fixed["layer_norm_eps"]) == (255, False, 1e-5)
    assert config.get("get_embeddings", True)


def build(case: Case) -> DenseCLIP:
    """The module of a case, with its weights."""
    meta, weights = case.meta, case.weights
    config, fixed = meta["config"], meta["fixed"]
    if config["kind"] == "resnet":
        vision: dict[str, Any] = {
            "layers": config["layers"],
            "width": config["width"],
            "head_width": 32 * config["width"] // fixed["attnpool_heads"],
            "image_size": config["input_resolution"],
        }
    else:
        conv1 = weights["backbone.conv1.weight"]
        heads = config.get("heads") or fixed.get("heads") or fixed.get("vit_heads")
        vision = {
            "layers": config["layers"],
            "width": config["width"],
            "head_width": config["width"] // heads,
            "patch_size": conv1.shape[-1],
            "image_size": config["input_resolution"],
        }
    text = {
        "context_length": max(77, config["text_context_length"]),
        "vocab_size": fixed["vocab_size"] if meta.get("text_tower", True) else 8,
        "width": config["text_width"],
        "heads": config["text_heads"],
        "layers": config["text_layers"],
    }
    module = DenseCLIP(
        num_classes=len(config["class_names"]),
        clip=CLIPSettings(
            "golden", quick_gelu=True, config={"embed_dim": config["embed_dim"], "vision_cfg": vision, "text_cfg": text}
        ),
        sizes=DenseCLIPSizes(
            ContextDecoderSizes(config["decoder_width"], config["decoder_heads"], config["decoder_layers"]),
            num_contexts=config["text_context_length"] - config["context_length"],
            image_size=config["input_resolution"],
            fpn_width=config["fpn_channels"],
            head_width=config["head_channels"],
        ),
        name_length=config["context_length"],
        temperature=config["tau"],
        score_weight=fixed["identity_loss_weight"],
        head_dropout=0.0,
        context_dropout=0.0,
        drop_path=0.0,
        out_indices=config.get("out_indices") or fixed.get("out_indices"),
    )
    for buffer, values in ((module.clip.mean, "mean"), (module.clip.std, "std")):
        buffer.copy_(torch.tensor(meta["normalisation"][values]).view(3, 1, 1))
    official.convert(weights, module)
    return module


def unnormalized(module: DenseCLIP, images: Tensor) -> Tensor:
    """Recorded images are normalised already; the module does that itself."""
    return images * module.clip.std + module.clip.mean


def compute(case: Case) -> dict[str, Tensor]:
    meta, io = case.meta, case.io
    check_options(case)
    config = meta["config"]
    module = build(case).eval()
    network = module.network
    assert isinstance(network, DenseCLIPNetwork)
    encoder = network.encoder
    out: dict[str, Tensor] = {}

    classifier = module.text_classifier
    assert isinstance(classifier, ContextTextClassifier)
    names = tuple(config["class_names"])
    out["token_ids"] = classifier.tokenize(names)
    vocabulary = Vocabulary("golden", names, tuple((n,) for n in names), None, None, ((0, 0, 0),) * len(names), 255)
    module.training_vocabulary = vocabulary
    if meta.get("text_tower", True):
        # The official text tower trains at rate 0, so that it has gradients; ours is frozen.
        for parameter in module.clip.parameters():
            parameter.requires_grad_()
        embedded = classifier(vocabulary)
        text = TextEmbeddings(embedded.vectors, embedded.class_index, len(names))
        out["text_embeddings_raw"] = text.vectors[None]
    else:
        text = TextEmbeddings(io["text_embeddings_raw"][0], torch.arange(len(names)), len(names))
    text.vectors.requires_grad_() if text.vectors.is_leaf else text.vectors.retain_grad()

    images = unnormalized(module, io["image"])
    encoded = encoder.embed(module.normalize(images))
    adapted = network.prompt(encoded, text.vectors)
    visual = torch.cat([encoded.image[:, None], encoded.cells.flatten(2).transpose(1, 2)], 1)
    output = module.run_network(images, text)
    assert output.score_map is not None
    levels = list(encoded.levels)
    levels[encoder.score_level] = torch.cat([levels[encoder.score_level], output.score_map], 1)
    size = (io["image"].shape[2], io["image"].shape[3])
    logits = module(images, text).semantic_scores(size)
    out |= {f"backbone.{i}": level for i, level in enumerate(encoded.levels)}
    out |= {f"neck.{i}": level for i, level in enumerate(network.neck(levels))}
    out |= {
        "global_feat": encoded.image,
        "visual_embeddings": encoded.cells,
        "visual_context": visual,
        "text_diff": network.context_decoder(text.vectors.expand(len(visual), -1, -1), visual),
        "text_embeddings": adapted,
        "score_map": output.score_map,
        "head_logits": output.class_logits,
        "logits": logits,
        "pred": logits.argmax(1),
    }

    labels = io["gt"][:, 0].long()
    losses = module.losses_of(output, labels, 255).weighted
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    out |= {
        "loss.decode": losses["cross_entropy"],
        "loss.identity": losses["score_map"],
        "loss.total": total,
        "acc.decode": 100 * (logits.argmax(1) == labels).float().mean().view(1),  # officially over ignored pixels too
        "grad_input.text_embeddings_raw": text.vectors.grad[None],  # type: ignore[index]
    }
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name in io:
        if name.startswith("grad."):
            (ours,) = official.rename({name.removeprefix("grad."): torch.empty(0)})
            gradient = gradients[ours]
            assert gradient is not None, name
            if ours == "clip.model.positional_embedding":
                gradient = gradient[: io[name].shape[0]]
            out[name] = gradient
    with torch.no_grad():
        module.train()
        # Batch statistics, as recorded; their running means must not change what follows.
        state = {key: value.clone() for key, value in network.state_dict().items()}
        fixed_text = TextEmbeddings(text.vectors.detach(), text.class_index, len(names))
        losses = module.losses_of(module.run_network(images, fixed_text), labels, 255).weighted
        out |= {"loss_train_mode.decode": losses["cross_entropy"], "loss_train_mode.identity": losses["score_map"]}
        network.load_state_dict(state)
        module.eval()
        if "slide_image" in io:
            out |= compute_windows(case, module, fixed_text)
    return {name: tensor for name, tensor in out.items() if name in io}


def compute_windows(case: Case, module: DenseCLIP, text: TextEmbeddings) -> dict[str, Tensor]:
    config = case.meta["config"]
    image = unnormalized(module, case.io["slide_image"])
    inference = RectangularWindow(config["slide_crop"], config["slide_stride"])
    original = tuple(config["slide_ori_shape"])

    def predict(crops: Tensor) -> Any:
        return module(crops, text)

    windows, size = inference.windows(*image.shape[-2:]), (image.shape[2], image.shape[3])
    scores = inference.scores(predict, image)
    crops = torch.cat([image[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows])
    torch.testing.assert_close(scores, average_windows([predict(crops)], windows, size))
    flipped = inference.scores(predict, image.flip(-1))
    views = MultiScale(inference, scales=(1.0,), flip=True)
    single = MultiScale(inference, scales=(1.0,), flip=False)
    return {
        "slide_logits": resize(scores, original),
        "slide_prob": single.scores(predict, image, original),
        "slide_pred": inference.labels(predict, image, original),
        "slide_prob_flip": functional.softmax(resize(flipped, original), 1).flip(-1),
        "aug_pred": views.labels(predict, image, original),
    }
