from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.errors import InputError
from ovsl.inference import WholeImage
from ovsl.layers import DINOSettings, FOUNDSettings
from ovsl.methods import CLIPDINOiser, MaskCLIP
from ovsl.methods.clip_dinoiser.network import CLIPDINOiserSizes, mark_background, pool
from ovsl.methods.clip_dinoiser.official import convert, rename, settings
from ovsl.methods.clip_dinoiser.teachers import ColorTeachers, DINOTeachers
from ovsl.vocabulary import Vocabulary

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 4, "width": 24, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408},
}
TINY_DINO = DINOSettings(
    "vit_base_patch16_224.dino",
    None,
    {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
)


def tiny_teachers():
    return DINOTeachers(TINY_DINO, FOUNDSettings(None, TINY_DINO))


def build(**options):
    torch.manual_seed(0)
    options = {"sizes": CLIPDINOiserSizes(width=8), "teachers": tiny_teachers, "inference": WholeImage()} | options
    return CLIPDINOiser(CLIPSettings("tiny", config=CLIP), **options).eval()


def images(*size, count=2):
    return torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def text(num_classes=3):
    vectors = functional.normalize(torch.randn(num_classes, 16), dim=1)
    return TextEmbeddings(vectors, torch.arange(num_classes), num_classes)


def test_pooling_is_a_weighted_mean_over_the_cells():
    features, weights = torch.randn(1, 5, 2, 3), torch.rand(1, 6, 2, 3) * 2 - 1
    expected = torch.zeros(5, 6)
    flat, cells = weights.flatten(2)[0], features.flatten(2)[0]
    for query in range(6):
        kept = torch.where(flat[query] < 0.3, 0, flat[query])
        expected[:, query] = (kept * cells).sum(1) / (kept.sum() + 1e-6)
    torch.testing.assert_close(pool(features, weights, 0.3).flatten(2)[0], expected)
    identity = torch.eye(6).view(1, 6, 2, 3)
    torch.testing.assert_close(pool(features, identity, 0.0), features, rtol=1e-4, atol=1e-4)


def test_pooling_happens_on_the_grid_of_the_correlations():
    assert pool(torch.randn(2, 5, 2, 3), torch.rand(2, 24, 4, 6), 0.2).shape == (2, 5, 4, 6)


def test_background_is_marked_image_by_image():
    """The released code does it by a reshape that is right for one image alone."""
    probabilities = torch.rand(3, 4, 5, 5).softmax(1)
    foreground = torch.rand(3, 1, 5, 5)
    together = mark_background(probabilities, foreground, 0.3)
    for index in range(3):
        alone = mark_background(probabilities[index : index + 1], foreground[index : index + 1], 0.3)
        assert torch.equal(together[index], alone[0])
    marked = (probabilities.amax(1) < 0.3) & (foreground[:, 0] <= 0.5)
    assert 0 < marked.sum() < marked.numel()
    assert torch.equal(together[:, 0] == 1, marked)
    assert torch.equal(together[:, 1:], probabilities[:, 1:])


@torch.no_grad()
def test_without_relations_it_is_maskclip():
    module, words = build(correlation_threshold=0.9999), text()
    baseline = MaskCLIP(clip=CLIPSettings("tiny", config=CLIP))
    baseline.clip.load_state_dict(module.clip.state_dict())
    # Every cell is related to itself alone.
    found, expected = module(images(32, 48), words).scores, baseline(images(32, 48), words).scores
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_images_are_padded_to_whole_patches_with_black():
    module, words = build(), text()
    pixels = images(30, 45)
    padded = functional.pad(pixels, (0, 3, 0, 2))
    torch.testing.assert_close(module(pixels, words).scores, module(padded, words).scores)


@torch.no_grad()
@pytest.mark.parametrize("block", [-4, -2, None])
def test_heads_may_read_another_block(block):
    module = build(sizes=CLIPDINOiserSizes(width=8, kernel_size=1, feature_block=block))
    assert module(images(32, 32), text()).scores.shape == (2, 3, 4, 4)
    assert module.network.obj_proj.in_channels == (16 if block is None else 24)


def batch():
    return {"image": images(32, 32), "semantic": torch.zeros(2, 32, 32, dtype=torch.int64), "id": ["a", "b"]}


def test_only_the_heads_learn_and_each_at_its_rate():
    module = build()
    losses = module.losses(batch()).weighted
    assert set(losses) == {"correlation", "foreground"}
    torch.stack(list(losses.values())).sum().backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    heads = {"obj_proj.weight", "obj_proj.bias", "bkg_decoder.weight", "bkg_decoder.bias"}
    assert trained == {f"network.{name}" for name in heads}
    groups = {group["name"]: group.get("lr", 5e-5) for group in module.parameter_groups(5e-5)}
    assert groups == {"correlation": 5e-5, "foreground": pytest.approx(1e-2)}


def test_training_brings_the_losses_down():
    module = build(teachers=lambda: ColorTeachers(patch_size=8))
    optimizer = torch.optim.AdamW(list(module.parameter_groups(1e-2)), lr=1e-2)
    totals = []
    for _ in range(20):
        total = torch.stack(list(module.losses(batch()).weighted.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_teachers_are_no_part_of_the_module_and_built_when_needed():
    built = []

    def count():
        built.append(1)
        return tiny_teachers()

    module = build(teachers=count)
    with torch.no_grad():
        module(images(32, 32), text())
    assert not built
    names = set(module.state_dict())
    module.losses(batch())
    module.losses(batch())
    assert built == [1]
    assert set(module.state_dict()) == names
    assert not any("dino" in name or "found" in name for name in names)


@torch.no_grad()
def test_teachers_can_stand_in_for_the_heads():
    module, words = build(predict_with="teachers", mark_background=True, certainty=1.0), text()
    for parameter in module.network.parameters():
        parameter.fill_(float("nan"))
    assert module(images(32, 32), words).scores.isfinite().all()


def test_colors_tell_things_apart():
    """A red square on green: two groups, and the square is foreground."""
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 1] = 200
    image[:, 0, 24:40, 24:40] = 200
    image[:, 1, 24:40, 24:40] = 0
    taught = ColorTeachers(patch_size=8)(image, (8, 8))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[3:5, 3:5] = True
    assert torch.equal(taught.foreground[0, 0] > 0.5, inside)
    related = taught.correlations.flatten(2)[0] > 0.2
    assert torch.equal(related, inside.flatten()[:, None] == inside.flatten()[None])


def test_the_release_is_read_and_every_tensor_accounted_for():
    module = build()
    release = {name: torch.randn_like(tensor) for name, tensor in module.network.state_dict().items()}
    convert({**release, "clip_backbone.decode_head.class_embeddings": torch.zeros(1, 16)}, module)
    for name, tensor in module.network.state_dict().items():
        assert torch.equal(tensor, release[name])
    with pytest.raises(InputError, match="no rule for"):
        rename({**release, "obj_proj.scale": torch.zeros(1)})
    with pytest.raises(InputError, match="missing"):
        convert({name: release[name] for name in ("obj_proj.weight", "obj_proj.bias")}, module)
    with pytest.raises(InputError, match="not the published"):
        settings(release)
    published = settings({"obj_proj.weight": torch.zeros(256, 768, 3, 3)})
    assert published["init_args"]["clip"] == {"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"}


def test_published_size_of_the_heads():
    with torch.device("meta"):
        network = type(build().network)(768, CLIPDINOiserSizes())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_770_497


def test_bad_input_is_one_sentence():
    with pytest.raises(InputError, match="CLIP-DINOiser needs a CLIP with a vision transformer and a class token"):
        CLIPDINOiser(CLIPSettings("toy_convnext"))
    with pytest.raises(InputError, match="feature_block is -1"):
        build(sizes=CLIPDINOiserSizes(feature_block=-1))
    with pytest.raises(InputError, match="class 0 of 'words' is 'cat'"):
        build(mark_background=True).words(Vocabulary.from_words(["cat", "dog"]))
    with pytest.raises(InputError, match="DINO compares 64 cells of a training image, CLIP 16"):
        build(teachers=lambda: ColorTeachers(patch_size=4)).losses(batch())
    with pytest.raises(InputError, match="timm has no model"):
        build(teachers=lambda: DINOTeachers(DINOSettings("dino_of_dreams"))).losses(batch())
