from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from ovsl.clip import CLIPSettings
from ovsl.errors import InputError
from ovsl.inference import DensePrediction, MultiScale, SlidingWindow
from ovsl.methods import DenseCLIP
from ovsl.methods.denseclip import ContextDecoderSizes, DenseCLIPSizes, official
from ovsl.runs.record import saved_state
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import SHIPPED

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 2, "head_width": 4, "image_size": 64},
    "text_cfg": TEXT,
}
VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 4, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": TEXT,
}
WORDS = Vocabulary.from_words(["road", "sky", "traffic light", "tree"])
SMALL = DenseCLIPSizes(ContextDecoderSizes(16, 2, 1), image_size=64, fpn_width=8, head_width=8)


def build(config: dict[str, Any] = RESNET, vocabulary: Vocabulary = WORDS, **options: Any) -> DenseCLIP:
    torch.manual_seed(0)
    clip = CLIPSettings("tiny", quick_gelu=True, config=config)
    options = {"num_classes": 4, "sizes": SMALL} | options
    module = DenseCLIP(clip=clip, **options)
    module.training_vocabulary = vocabulary
    return module


def batch(size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    semantic = torch.randint(4, (2, *size), generator=generator)
    semantic[:, :4] = 255
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    return {"image": images, "semantic": semantic, "id": ["a", "b"]}


def test_a_deeper_tower_may_start_from_the_weights_of_another() -> None:
    shallow = RESNET | {"vision_cfg": RESNET["vision_cfg"] | {"layers": [1, 1, 1, 1]}}
    deep = RESNET | {"vision_cfg": RESNET["vision_cfg"] | {"layers": [1, 1, 3, 1]}}
    options = {"config": deep, "language_guidance": False}
    plain = build(**options).state_dict()
    torch.manual_seed(5)
    donor = CLIPSettings("tiny", quick_gelu=True, config=shallow)
    started = build(**options, image_tower_start=donor).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], started[name])}
    assert any("layer3.0.conv1" in name for name in changed)
    assert not any("layer3.1." in name or "layer3.2." in name for name in changed if "encoder" in name)
    vit = CLIPSettings("tiny", quick_gelu=True, config=VIT)
    with pytest.raises(InputError, match="fits"):
        build(**options, image_tower_start=vit)


@pytest.mark.parametrize(
    ("clip", "resolution", "denseclip", "baseline"),
    [
        ("RN50", 512, 50_248_438, 31_042_550),
        ("RN101", 512, 67_795_190, 50_034_678),
        ("ViT-B-16", 640, 105_273_494, 101_282_710),
    ],
)
def test_published_parameter_counts(clip: str, resolution: int, denseclip: int, baseline: int) -> None:
    for guided, published in ((True, denseclip), (False, baseline)):
        with torch.device("meta"):
            sizes = DenseCLIPSizes(image_size=resolution)
            random = CLIPSettings(clip, "random", quick_gelu=True)
            module = DenseCLIP(150, random, language_guidance=guided, sizes=sizes)
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == published


@pytest.mark.parametrize("options", [{}, {"config": VIT}, {"backbone": "resnet18"}, {"language_guidance": False}])
def test_every_weight_but_the_text_towers_trains(options: dict[str, Any]) -> None:
    module = build(**options)
    frozen = {name: value.clone() for name, value in module.clip.state_dict().items()}
    before = {name: p.detach().clone() for name, p in module.named_parameters() if not name.startswith("clip.")}
    optimizer = torch.optim.SGD(module.parameter_groups(1e-4), lr=1.0)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.zero_grad()
    sum(module.losses(batch()).weighted.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in module.clip.state_dict().items())
    after = dict(module.named_parameters())
    assert [name for name, value in before.items() if after[name].grad is None] == []
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[1] for name in changed} >= {"encoder", "head", "neck"}
    assert ("contexts.contexts" in changed) == options.get("language_guidance", True)
    # BatchNorm statistics of the image tower belong to the checkpoint as well.
    assert "network.encoder.visual.bn1.running_mean" in saved_state(module, module.state_dict()) or options != {}


def test_contexts_change_what_is_kept_of_the_texts() -> None:
    module = build()
    classifier = module.text_classifier
    with torch.no_grad():
        first = classifier(WORDS)
        assert classifier(WORDS) is first
        assert module.contexts is not None
        module.contexts.contexts.add_(1)
        second = classifier(WORDS)
    assert not torch.allclose(first.vectors, second.vectors)
    assert classifier(WORDS).vectors.requires_grad
    torch.testing.assert_close(classifier(WORDS).vectors, second.vectors)


def test_long_names_are_refused_and_longer_ones_fit_on_request() -> None:
    words = Vocabulary.from_words(["very long traffic light", "sky"])
    with pytest.raises(InputError, match="'very long traffic light' has 4 tokens"):
        build().text_classifier(words)
    assert build(name_length=8).text_classifier(words).vectors.shape == (2, 16)


def test_a_name_reads_the_same_in_a_longer_sequence() -> None:
    """The end token is read where it is, and causal attention hides the padding behind it."""
    with torch.no_grad():
        short, long = (build(name_length=length).text_classifier(WORDS).vectors for length in (5, 9))
    torch.testing.assert_close(short, long)


def test_groups_follow_the_official_names() -> None:
    module = build()
    groups = {group["name"]: group for group in module.parameter_groups(1e-4)}
    names = {id(p): name for name, p in module.named_parameters()}
    assert groups["backbone"]["lr"] == pytest.approx(1e-5)
    assert groups["norm"]["weight_decay"] == 0
    assert {names[id(p)] for p in groups["norm"]["params"]} == {
        f"network.context_decoder.decoder.0.norm{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")
    }
    rest = {names[id(p)] for p in groups["rest"]["params"]}
    assert {"contexts.contexts", "network.gamma", "network.context_decoder.out_proj.0.weight"} <= rest
    counted = sum(len(group["params"]) for group in groups.values())
    assert counted == sum(p.requires_grad for p in module.parameters())


def test_the_head_serves_its_classes_and_the_score_map_any() -> None:
    module, words = build().eval(), Vocabulary.from_words(["lamp", "sky", "wall"])
    data = batch()
    with torch.no_grad():
        with pytest.raises(InputError, match=r"lacks 'road'.*open-vocabulary"):
            module.segmenter(words)
        module.open_vocabulary, module.closed_set = True, False
        labels = [found.labels for found in module.segmenter(words)(list(data["image"]), [(64, 96)] * 2)]
        text = module.text_classifier(words)
        scores = module.network.match(module.normalize(data["image"]), text.vectors).score_map
    upsampled = functional.interpolate(scores, size=(64, 96), mode="bilinear", align_corners=False)
    assert torch.equal(torch.stack(labels), upsampled.argmax(1))
    with pytest.raises(InputError, match="has 3 seen classes; set it to 3"):
        build(vocabulary=Vocabulary(**{**vars(WORDS), "seen": (True, True, False, True)})).losses(batch())


def test_odd_sizes_go_through_and_images_do_not_meet() -> None:
    module = build().eval()
    images = batch((75, 101))["image"]
    with torch.no_grad():
        text = module.text_classifier(WORDS)
        together = module(images, text).semantic_scores((75, 101))
        alone = torch.cat([module(one[None], text).semantic_scores((75, 101)) for one in images])
    torch.testing.assert_close(together, alone)


def test_views_are_averaged_after_the_softmax() -> None:
    def predict(crops: torch.Tensor) -> DensePrediction:
        # Depends on the position, so that a mirror image that is not mirrored back would show.
        ramp = torch.linspace(0, 1, crops.shape[-1]).expand(len(crops), 1, *crops.shape[-2:])
        return DensePrediction(torch.cat([4 * crops[:, :1] + ramp, 2 * crops[:, 1:2]], dim=1))

    image = torch.rand(1, 3, 24, 32)
    plain = predict(image).scores.softmax(1)
    mirrored = predict(image.flip(-1)).scores.softmax(1).flip(-1)
    found = MultiScale(scales=(1.0,)).scores(predict, image, (24, 32))
    torch.testing.assert_close(found, (plain + mirrored) / 2)
    windows = MultiScale(SlidingWindow(16, 8), scales=(0.5, 1.0, 2.0), flip=True)
    probabilities = windows.scores(predict, image, (48, 64))
    assert probabilities.shape == (1, 2, 48, 64)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 48, 64))


def test_official_names_are_all_accounted_for() -> None:
    weights = load_file(SHIPPED / "denseclip/resnet_mini/weights.safetensors")
    config = {**RESNET, "vision_cfg": {"layers": [1, 2, 1, 1], "width": 2, "head_width": 2, "image_size": 64}}
    small = {"num_classes": 3, "sizes": replace(SMALL, context_decoder=ContextDecoderSizes(16, 2, 2))}
    module = build(config, **small)
    own = {name: value for name, value in saved_state(module, module.state_dict()).items() if value.is_floating_point()}
    for value in own.values():
        value.fill_(7)
    official.convert(weights, module)
    assert not [name for name, value in own.items() if (value == 7).all()]
    with pytest.raises(InputError, match=r"1 \(contexts\.contexts\) missing"):
        official.convert({name: t for name, t in weights.items() if name != "contexts"}, build(config, **small))
    with pytest.raises(InputError, match=r"no rule for 1 \(.*\) of its names"):
        official.convert({**weights, "auxiliary": torch.zeros(1)}, build(config, **small))
    with pytest.raises(InputError, match=r"of another shape.*num_classes"):
        official.convert(weights, build(config, **small | {"num_classes": 5}))


def test_towers_that_do_not_fit_are_named() -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"convnext": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}, "image_size": 32},
        "text_cfg": TEXT,
    }
    with pytest.raises(InputError, match="give a timm `backbone`"):
        build(config)
    with pytest.raises(InputError, match="more than the 77 positions"):
        build(sizes=replace(SMALL, num_contexts=80))


@pytest.mark.parametrize("config", [RESNET, VIT])
def test_trains_in_mixed_precision(config: dict[str, Any]) -> None:
    module = build(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.stack(list(module.losses(batch()).weighted.values())).sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.network.parameters() if p.grad is not None)


@pytest.mark.parametrize("fused", [False, True])
def test_text_is_not_stale_after_an_optimiser_step(fused: bool) -> None:
    module = build()
    contexts = module.contexts.contexts  # type: ignore[union-attr]
    with torch.no_grad():
        before = module.text_classifier(WORDS).vectors.clone()
    module.text_classifier(WORDS).vectors.sum().backward()
    torch.optim.AdamW([contexts], lr=0.1, fused=fused).step()
    with torch.no_grad():
        assert not torch.equal(module.text_classifier(WORDS).vectors, before)
        kept = module.text_classifier(WORDS).vectors
        assert module.text_classifier(WORDS).vectors is kept, "what did not change is not embedded again"
