from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ovsl.clip import CLIPSettings
from ovsl.errors import InputError
from ovsl.layers.backbone import Backbone
from ovsl.losses.cross_entropy import pixel_cross_entropy
from ovsl.methods import CLIPLightweight
from ovsl.methods.clip_lightweight.fusion import CLIPLightweightSizes, ContextFusion, TwoWayFusion
from ovsl.methods.clip_lightweight.network import CLIPLightweightNetwork
from ovsl.runs.record import saved_state
from ovsl.vocabulary import Vocabulary

DIM = 32
TINY = {
    "embed_dim": DIM,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
SMALL = CLIPLightweightSizes(width=32, token_width=24, fpn_width=16, head_width=16)
WORDS = Vocabulary.from_words(["road", "sky", "car", "tree", "person", "wall"])


def build(**options: Any) -> CLIPLightweight:
    torch.manual_seed(0)
    return CLIPLightweight(
        clip=CLIPSettings("tiny", quick_gelu=True, config=TINY), templates="photo_of", **{"sizes": SMALL} | options
    )


def network(bridge: str = "both", num_classes: int | None = None, **options: Any) -> CLIPLightweightNetwork:
    """In float64 and evaluation mode, with BatchNorm statistics and gains of a trained network."""
    torch.manual_seed(0)
    backbone = Backbone("resnet18", options={"channels": (8, 8, 16, 24)})
    fusion = TwoWayFusion(24, DIM, SMALL, bridge, **options)
    net = CLIPLightweightNetwork(backbone, DIM, fusion, SMALL, num_classes)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.double().eval()


def texts(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def image(batch: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("mobilenetv2_100", (97, 131)),
        ("mobilenetv3_large_100", (64, 96)),
        ("repvit_m1", (64, 96)),
        ("fastvit_t8", (97, 131)),
        ("convnext_tiny", (64, 64)),
        ("resnet18", (250, 333)),
        ("resnet50", (65, 90)),
        ("vit_tiny_patch16_224", (97, 131)),
        ("efficientformerv2_s0", (64, 64)),
        ("swin_tiny_patch4_window7_224", (64, 64)),
    ],
)
def test_every_backbone_gives_scores_of_the_size_of_the_image(backbone: str, size: tuple[int, int]) -> None:
    fixed = backbone.startswith(("efficientformer", "swin"))
    options: dict[str, Any] | None = {"img_size": size[0]} if fixed else None
    if options and backbone.startswith("swin"):
        options["embed_dim"] = 24
    module = build(backbone=backbone, backbone_options=options).eval()
    images = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    text = module.text_classifier(WORDS)
    with torch.no_grad():
        coarsest = module.network.backbone(module.normalize(images))[-1]
        output = module.run_network(images, text)
        assert module(images, text).semantic_scores(size).shape == (1, 6, *size)
    assert output.score_map is not None
    assert output.score_map.shape == (1, 6, *coarsest.shape[-2:])
    assert output.score_map.abs().max() <= 1 + 1e-6
    assert output.text.shape == (1, 6, DIM)


def test_backbones_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match=r"efficientvit_m0.*strides"):
        Backbone("efficientvit_m0")
    with pytest.raises(InputError, match="no backbone 'mobilenet_v2'"):
        Backbone("mobilenet_v2")
    with pytest.raises(InputError, match="64x64 and got 64x96; set img_size"):
        Backbone("efficientformerv2_s0", options={"img_size": 64})(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("bridge", ["both", "v2t", "t2v", "none"])
def test_the_bridge_carries_gradients_its_ways_only(bridge: str) -> None:
    net = network(bridge)
    images, text = image().requires_grad_(), texts().requires_grad_()
    output = net(images, text)
    assert output.fused is not None
    (from_text,) = torch.autograd.grad(output.fused.square().sum(), text, retain_graph=True, allow_unused=True)
    (from_image,) = torch.autograd.grad(output.text.square().sum(), images, allow_unused=True)
    assert (from_text is not None and from_text.abs().max() > 0) == (bridge in ("both", "t2v"))
    assert (from_image is not None and from_image.abs().max() > 0) == (bridge in ("both", "v2t"))


def test_the_image_reaches_itself_through_the_texts() -> None:
    net = network()
    whole = net(image(), texts()).fused
    assert isinstance(net.fusion, TwoWayFusion)
    net.fusion.blocks[0].v2t.forward = lambda tokens, features: tokens  # type: ignore[method-assign, union-attr]
    assert not torch.allclose(net(image(), texts()).fused, whole)


def test_classes_permute_and_the_length_of_their_texts_does_not_matter() -> None:
    net, order = network(), torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        plain, permuted, longer = (net(image(), t) for t in (texts(), texts()[order], 7.5 * texts()))
    assert plain.score_map is not None
    assert (permuted.class_logits - plain.class_logits[:, order]).abs().max() < 1e-10
    assert (permuted.score_map - plain.score_map[:, order]).abs().max() < 1e-10
    assert (permuted.text - plain.text[:, order]).abs().max() < 1e-10
    assert (longer.class_logits - plain.class_logits).abs().max() < 1e-10


def test_equal_classes_get_equal_scores() -> None:
    text = texts()
    text[4] = text[1]
    with torch.no_grad():
        logits = network()(image(), text).class_logits
    assert (logits[:, 4] - logits[:, 1]).abs().max() < 1e-10


def test_images_of_a_batch_do_not_meet() -> None:
    net, images = network(), image()
    with torch.no_grad():
        together = net(images, texts()).class_logits
        alone = torch.cat([net(one[None], texts()).class_logits for one in images])
    assert (together - alone).abs().max() < 1e-10


def test_one_set_of_weights_takes_any_vocabulary() -> None:
    net = network()
    with torch.no_grad():
        for count in (1, 20, 847):
            assert net(image(1), texts(count)).class_logits.shape == (1, count, 16, 24)


def test_a_closed_set_grows_with_its_classes_and_refuses_others() -> None:
    sizes = [sum(p.numel() for p in network(num_classes=count).parameters()) for count in (6, 7, 16)]
    assert sizes[1] - sizes[0] == 16 + 16 + 1
    assert sizes[2] - sizes[0] == 10 * (16 + 16 + 1)
    with pytest.raises(InputError, match="built for 6 classes and was given 5"):
        network(num_classes=6)(image(), texts(5))


def test_without_bridge_and_gamma_the_texts_stay_those_of_the_clip() -> None:
    net = network("none", gamma=0.0)
    with torch.no_grad():
        adapted = net(image(), texts()).text
    assert torch.equal(adapted, functional.normalize(texts(), dim=-1).expand(2, -1, -1))


@pytest.mark.parametrize(
    ("backbone", "fusion", "text_match", "fpn_concat", "multiply_adds"),
    [
        ("mobilenetv2_100", 2_600_192, 6_195_968, 6_135_702, 12.25),
        ("mobilenetv3_large_100", 2_764_032, 7_605_040, 7_544_774, 11.98),
        ("efficientformerv2_s0", 2_563_328, 7_591_184, 7_530_918, 13.31),
        ("legacy_xception", 3_042_560, 25_977_640, 25_917_374, 35.17),
        ("resnet18", 2_649_344, 15_672_384, 15_612_118, 20.44),
        ("resnet50", 3_042_560, 28_765_760, 28_705_494, 33.18),
    ],
)
def test_sizes(backbone: str, fusion: int, text_match: int, fpn_concat: int, multiply_adds: float) -> None:
    with torch.device("meta"):
        pyramid = Backbone(backbone, options={"img_size": 512} if "former" in backbone else None)
        sizes = CLIPLightweightSizes()
        module = TwoWayFusion(pyramid.channels[-1], 512, sizes)
        open_set = CLIPLightweightNetwork(pyramid, 512, module, sizes).eval()
        closed_set = CLIPLightweightNetwork(pyramid, 512, module, sizes, num_classes=150)
        inputs = torch.zeros(1, 3, 512, 512), torch.zeros(150, 512)
    counted = [sum(p.numel() for p in part.parameters()) for part in (module, open_set, closed_set)]
    assert counted == [fusion, text_match, fpn_concat]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        open_set(*inputs, as_published=True)
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, abs=0.005)
    with torch.no_grad(), FlopCounterMode(display=False) as fewer:
        open_set(*inputs)
    assert fewer.get_total_flops() < counter.get_total_flops()


def batch(seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(6, (2, 64, 96), generator=generator)
    semantic[:, :8] = 255
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator)
    return {"image": images, "semantic": semantic, "id": ["a", "b"]}


def trained(vocabulary: Vocabulary = WORDS, **options: Any) -> CLIPLightweight:
    module = build(backbone="resnet18", backbone_options={"channels": (8, 8, 16, 24)}, **options)
    module.training_vocabulary = vocabulary
    return module


def test_training_leaves_the_text_tower_and_the_cached_texts_alone() -> None:
    module = trained()
    before = {name: value.clone() for name, value in module.clip.state_dict().items()}
    cached = module.training_classes.text().vectors
    optimizer = module.optimizer(list(module.parameter_groups(1e-4)))
    changed = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        sum(module.losses(batch()).weighted.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.clip.state_dict().items())
    assert all(parameter.grad is None for parameter in module.clip.parameters())
    assert module.training_classes.text().vectors is cached
    assert torch.equal(cached, module.text_encoder()(WORDS).vectors)
    assert all(not torch.equal(p, changed[name]) for name, p in module.network.named_parameters())
    assert not any(name.startswith("clip.") for name in saved_state(module, module.state_dict()))


def test_the_second_loss_is_that_of_the_upsampled_score_map() -> None:
    module = trained().eval()
    data = batch()
    with torch.no_grad():
        losses = module.losses(data).weighted
        scores = module.run_network(data["image"], module.training_classes.text()).score_map
    assert scores is not None
    upsampled = functional.interpolate(scores / 0.07, size=(64, 96), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(upsampled, data["semantic"], ignore_index=255)
    torch.testing.assert_close(losses["score_map"], 0.4 * expected)


def test_labels_of_unseen_classes_do_not_reach_the_loss() -> None:
    module = trained(Vocabulary(**{**vars(WORDS), "seen": (True, False, True, True, False, True)})).eval()
    data, hidden = batch(), batch()
    hidden["semantic"][(data["semantic"] == 1) | (data["semantic"] == 4)] = 255
    with torch.no_grad():
        for name, loss in module.losses(data).weighted.items():
            assert loss == module.losses(hidden).weighted[name]
    assert len(module.training_classes.text().vectors) == 4


def test_ignored_pixels_count_only_where_all_are_averaged() -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    assert pixel_cross_entropy(logits, labels, 255) == 0
    labels[:, :1] = 1
    labelled, everything = (pixel_cross_entropy(logits, labels, 255, average) for average in ("labelled", "all"))
    torch.testing.assert_close(everything, labelled / 4)


def test_a_closed_set_predicts_its_own_words_only() -> None:
    module = trained(decoder="fpn_concat", num_classes=6).eval()
    images = batch()["image"]

    def label_maps(words: Vocabulary) -> Tensor:
        return torch.stack([found.labels for found in module.segmenter(words)(list(images), [(64, 96)] * 2)])

    labels = label_maps(WORDS)
    # In another order and among other words, it still finds its own.
    more = Vocabulary.from_words(["lamp", *reversed(WORDS.classes)])
    assert torch.equal(label_maps(more), 6 - labels)
    with pytest.raises(InputError, match="lacks 'road'"):
        label_maps(Vocabulary.from_words(["sky", "car", "tree", "person", "wall", "lamp"]))
    with pytest.raises(InputError, match="set both or neither"):
        build(num_classes=6)


@pytest.mark.parametrize("fusion", ["none", "context"])
def test_baselines_train_every_weight(fusion: str) -> None:
    for options in ({}, {"decoder": "fpn_concat", "num_classes": 6}):
        module = trained(fusion=fusion, **options)
        losses = module.losses(batch()).weighted
        assert ("score_map" in losses) == (fusion == "context")
        sum(losses.values()).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None for p in module.network.parameters())
        assert isinstance(module.network.fusion, ContextFusion) == (fusion == "context")


@pytest.mark.parametrize("bridge", ["both", "v2t", "t2v", "none"])
def test_every_bridge_trains_every_weight(bridge: str) -> None:
    module = trained(bridge=bridge)
    sum(module.losses(batch()).weighted.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in module.network.parameters())


def test_pretrained_backbones_learn_slowly_and_biases_do_not_decay() -> None:
    groups = {group["name"]: group for group in trained(backbone_rate=0.1).parameter_groups(1e-4)}
    assert groups["backbone"]["lr"] == pytest.approx(1e-5)
    assert groups["rest"]["lr"] == pytest.approx(1e-4)
    module = trained()
    optimizer = module.optimizer(list(module.parameter_groups(1e-4)))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(module.network.parameters()))
    assert isinstance(module.network.fusion, TwoWayFusion)
    assert decay[id(module.network.fusion.gamma)] == 0
    assert decay[id(module.network.head.classifier.weight)] == 1e-4
    assert decay[id(module.network.head.classifier.bias)] == 0
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}


def test_two_images_are_learned_by_heart() -> None:
    module = trained(Vocabulary.from_words(["road", "sky", "car", "tree"]))
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(4, (2, 4, 6), generator=generator)
    data = batch()
    data["semantic"] = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=4e-3)
    for _ in range(80):
        optimizer.zero_grad()
        losses = module.losses(data).weighted
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    with torch.no_grad():
        text = module.training_classes.text()
        logits = functional.interpolate(
            module.run_network(data["image"], text).class_logits, size=(64, 96), mode="bilinear", align_corners=False
        )
    assert losses["cross_entropy"] < 0.05
    assert (logits.argmax(1) == data["semantic"]).float().mean() > 0.99


@pytest.mark.parametrize("options", [{}, {"fusion": "context"}, {"decoder": "fpn_concat", "num_classes": 6}])
def test_cosines_stay_in_full_precision_when_the_rest_is_mixed(options: dict[str, Any]) -> None:
    module = trained(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data, text = batch(), module.training_classes.text()
        output = module.run_network(data["image"], text)
        loss = torch.stack(list(module.losses(data).weighted.values())).sum()
    assert output.score_map is not None
    assert output.score_map.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.network.parameters() if p.grad is not None)
