from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ovsl.clip import CLIPSettings
from ovsl.errors import InputError
from ovsl.inference import DensePrediction
from ovsl.methods import LSeg
from ovsl.methods.lseg import LSegSizes, official
from ovsl.methods.lseg.module import sample_classes
from ovsl.methods.lseg.multi_scale_sum import MultiScaleSum
from ovsl.methods.lseg.network import SpatialRegularizer
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import SHIPPED

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
VIT = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64}
WORDS = Vocabulary.from_words(["road", "sky", "traffic light", "tree"])


def build(vocabulary: Vocabulary = WORDS, **options: Any) -> LSeg:
    torch.manual_seed(0)
    options = {
        "backbone": "vit_tiny_patch16_384",
        "backbone_options": VIT,
        "sizes": LSegSizes(8, (8, 8, 8, 8)),
    } | options
    module = LSeg(clip=CLIPSettings("tiny", quick_gelu=True, config=TINY), **options)
    module.training_vocabulary = vocabulary
    return module


def batch(size: tuple[int, int] = (32, 64)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    semantic = torch.randint(4, (2, *size), generator=generator)
    semantic[:, :4] = 255
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    return {"image": images, "semantic": semantic, "id": ["a", "b"]}


@pytest.mark.parametrize(
    ("clip", "backbone", "published", "width"),
    [
        ("ViT-B-32", "vit_large_patch16_384", 343_859_176, 1024),
        ("RN50x16", "vit_large_patch16_384", 343_924_968, 1024),
        ("ViT-B-32", "vit_base_patch32_384", 109_054_248, 768),
    ],
)
def test_sizes_are_the_published_ones_less_what_no_output_depends_on(
    clip: str, backbone: str, published: int, width: int
) -> None:
    with torch.device("meta"):
        module = LSeg(clip=CLIPSettings(clip, "random", quick_gelu=True), backbone=backbone)
    norm_and_classifier = 2 * width + (width + 1) * 1000
    unused_unit = 2 * 256 * 256 * 9 + 4 * 256
    assert (
        sum(p.numel() for p in module.parameters() if p.requires_grad) == published - norm_and_classifier - unused_unit
    )


def test_every_weight_but_the_text_towers_trains() -> None:
    module = build(regularizer="bottleneck", regularizer_depth=2)
    frozen = {name: value.clone() for name, value in module.clip.state_dict().items()}
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    optimizer = module.optimizer(list(module.parameter_groups(1e-3)))
    for _ in range(2):
        optimizer.zero_grad()
        sum(module.losses(batch()).weighted.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in module.clip.state_dict().items())
    assert [n for n, p in module.network.named_parameters() if torch.equal(p, before[n])] == []
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["decoder"] == pytest.approx(10 * rates["encoder"])


def test_logits_follow_the_order_of_the_labels() -> None:
    module = build(regularizer="depthwise", regularizer_depth=2).eval()
    images, order = batch()["image"], [2, 0, 3, 1]
    permuted = Vocabulary.from_words([WORDS.classes[index] for index in order])
    with torch.no_grad():
        logits = module.class_logits(images, module.text_classifier(WORDS).vectors)
        other = module.class_logits(images, module.text_classifier(permuted).vectors)
    torch.testing.assert_close(other, logits[:, order])
    assert logits.abs().max() > 0.1


def test_any_size_goes_in_and_comes_out() -> None:
    module = build().eval()
    text = module.text_classifier(WORDS)
    image = torch.randint(256, (1, 3, 50, 71), dtype=torch.uint8)
    with torch.no_grad():
        logits = module.class_logits(image, text.vectors)
        padded = module.class_logits(functional.pad(image, (0, 25, 0, 14)), text.vectors)
    assert logits.shape == (1, 4, 50, 71)
    assert torch.equal(logits, padded[..., :50, :71])


def test_unseen_labels_do_not_reach_the_loss() -> None:
    module = build(Vocabulary(**{**vars(WORDS), "seen": (True, False, True, True)})).eval()
    data, hidden = batch(), batch()
    hidden["semantic"][data["semantic"] == 1] = 255
    with torch.no_grad():
        assert module.losses(data).weighted["cross_entropy"] == module.losses(hidden).weighted["cross_entropy"]


def test_one_class_is_asked_of_every_image() -> None:
    labels = torch.tensor([[[2, 2], [0, 255]], [[3, 3], [3, 3]], [[255, 255], [255, 255]]])
    torch.manual_seed(0)
    drawn = torch.stack([sample_classes(labels, 4) for _ in range(50)])
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 1].tolist()) == {3}
    assert set(drawn[:, 2].tolist()) == {0, 1, 2, 3}

    module = build(objective="one_class").eval()
    data = batch()
    data["semantic"][:] = 255
    data["semantic"][0, :8], data["semantic"][1, :16] = 1, 3
    with torch.no_grad():
        loss = module.losses(data).weighted["cross_entropy"]
        text = module.text_classifier(WORDS)
        margin = module(data["image"], text).scores  # of each class over "others"
    right = torch.stack([margin[0, 1], margin[1, 3]])
    # Pixels without a label count as "others".
    expected = functional.binary_cross_entropy_with_logits(right, (data["semantic"] != 255).float())
    torch.testing.assert_close(loss, expected)


def test_images_without_a_class_that_may_be_asked_teach_nothing() -> None:
    module = build(objective="one_class").eval()
    data, hidden = batch(), batch()
    data["semantic"][:] = 255
    data["semantic"][0, :8] = 1
    with torch.no_grad():
        alone = {name: value[:1] for name, value in data.items()}
        one = module.losses(alone).weighted["cross_entropy"]
        both = module.losses(data).weighted["cross_entropy"]
        hidden["semantic"][:] = 255
        nothing = module.losses(hidden).weighted["cross_entropy"]
    torch.testing.assert_close(both, one)
    assert nothing == 0


def test_renamed_classes_are_shown_under_the_other_name() -> None:
    plain, renamed = build(), build(class_names={"traffic light": "traffic"})
    one, other = (module.text_classifier(WORDS).vectors for module in (plain, renamed))
    assert torch.equal(one[[0, 1, 3]], other[[0, 1, 3]])
    torch.testing.assert_close(other[2:3], plain.text_classifier(Vocabulary.from_words(["traffic"])).vectors)
    assert not torch.allclose(one[2], other[2])


def test_regularisers_against_a_loop_over_classes() -> None:
    logits = torch.randn(2, 3, 5, 6)
    for kind in ("depthwise", "bottleneck"):
        module = SpatialRegularizer(kind, 2, "tanh")  # type: ignore[arg-type]

        def once(x: Tensor, module: SpatialRegularizer = module, kind: str = kind) -> Tensor:
            rows = torch.cat([module.depthwise(x[:, k : k + 1]) for k in range(x.shape[1])], dim=1)
            return rows + x.max(dim=1, keepdim=True).values if kind == "bottleneck" else rows

        torch.testing.assert_close(module(logits), once(once(logits).tanh()))
        torch.testing.assert_close(SpatialRegularizer(kind, 0)(logits).shape, logits.shape)  # type: ignore[arg-type]


def test_windows_are_cut_at_the_border_and_averaged() -> None:
    """A prediction that says where it looks: the mean brightness of the pixel itself comes back unchanged."""
    seen: list[tuple[int, ...]] = []

    def predict(crops: Tensor) -> DensePrediction:
        seen.append(tuple(crops.shape))
        return DensePrediction(torch.stack([crops[:, 0], 1 - crops[:, 0]], dim=1))

    image = torch.rand(1, 3, 60, 84)
    inference = MultiScaleSum(base_size=84, crop_size=48, scales=(1.0,), flip=True)
    scores = inference.scores(predict, image, (60, 84))
    torch.testing.assert_close(scores[:, 0], 2 * image[:, 0], atol=1e-5, rtol=0)
    # Stride 32: windows start at 0 and 32 in height, at 0, 32 and 64 in width; the last ones are padded.
    assert [shape[2:] for shape in seen] == [(48, 48)] * 2
    assert sum(shape[0] for shape in seen) == 2 * 2 * 3


def test_official_names_are_all_accounted_for() -> None:
    weights = load_file(SHIPPED / "lseg/vit16_mini/weights.safetensors")
    options: dict[str, Any] = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 48}
    config = {**TINY, "embed_dim": 512}

    def fresh() -> LSeg:
        clip = CLIPSettings("tiny", quick_gelu=True, config=config)
        return LSeg(clip, "vit_tiny_patch16_384", backbone_options=options, sizes=LSegSizes(8, (4, 6, 8, 12)))

    module = fresh()
    untouched = {name for name, value in module.network.state_dict().items() if value.is_floating_point()}
    for value in module.network.state_dict().values():
        value.fill_(7)
    official.convert(weights, module)
    assert not [name for name in untouched if (module.network.state_dict()[name] == 7).all()]
    less = dict(weights)
    del less["net.scratch.head1.bias"]
    with pytest.raises(InputError, match=r"1 \(network\.head\.bias\) missing"):
        official.convert(less, fresh())
    with pytest.raises(InputError, match=r"no rule for 1 \(.*\) of its names"):
        official.convert({**weights, "net.scratch.extra": torch.zeros(1)}, fresh())


def test_backbones_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="'convnext_atto' is neither"):
        build(backbone="convnext_atto", backbone_options={})
    with pytest.raises(InputError, match=r"four block numbers .* from 0 to 3"):
        build(blocks=(0, 1, 2, 4))


def test_trains_in_mixed_precision() -> None:
    module = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.losses(batch()).weighted["cross_entropy"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.network.parameters() if p.grad is not None)
