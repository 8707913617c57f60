"""The training-free line from SCLIP to CorrCLIP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ovsl.clip import TextEmbeddings
from ovsl.clip.blocks import run_block
from ovsl.errors import InputError
from ovsl.evaluation import Words
from ovsl.inference import DensePrediction, SlidingWindow, WholeImage, WordInference, WordRules
from ovsl.layers.dino import DINOSettings
from ovsl.methods import TrainingFree
from ovsl.methods.base import CLIPSettings
from ovsl.methods.training_free import (
    ColorProxy,
    DINOProxy,
    LastBlock,
    ProxyAttention,
    RegionCorrelation,
    TokenAttention,
)
from ovsl.methods.training_free.last_block import block_inputs, gaussian_bias
from ovsl.methods.training_free.region_correlation import MERGED, region_numbers
from ovsl.vocabulary import Vocabulary
from tests.conftest import TINY_CLIP

SIX_LAYERS: dict[str, Any] = TINY_CLIP | {"vision_cfg": TINY_CLIP["vision_cfg"] | {"layers": 6}}


def make(last_block: LastBlock, padding: Any = None, **kwargs: Any) -> TrainingFree:
    torch.manual_seed(0)
    clip = CLIPSettings("tiny", config=SIX_LAYERS)
    return TrainingFree(clip=clip, templates="single", last_block=last_block, padding=padding, **kwargs).eval()


def images(height: int = 37, width: int = 44, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 5, 6, generator=generator)
    return (functional.interpolate(coarse, (height, width), mode="bilinear") * 255).to(torch.uint8)


def quarters(height: int = 37, width: int = 44, batch: int = 2) -> Tensor:
    regions = torch.zeros(batch, height, width, dtype=torch.int32)
    regions[:, : height // 2, : width // 2] = 1
    regions[:, : height // 2, width // 2 :] = 2
    regions[1, height // 2 :, : width // 3] = 3
    return regions


def words(count: int = 5) -> TextEmbeddings:
    vectors = functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    return TextEmbeddings(vectors, torch.tensor([0, 0, 1, 2, 2][:count]), 3)


BLOCKS: dict[str, Any] = {
    "sclip": (lambda: TokenAttention(), None, (4, 5)),
    "naclip": (lambda: TokenAttention(["key-key"], 5.0, False), None, (4, 5)),
    "clearclip": (lambda: TokenAttention(["query-query"], None, False), "patch", (5, 6)),
    "proxyclip": (lambda: ProxyAttention(ColorProxy(4)), 24, (12, 12)),
    "corrclip": (lambda: RegionCorrelation(ColorProxy(4)), 24, (12, 12)),
}


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_every_last_block_scores_words_on_its_grid(name: str) -> None:
    block, padding, grid = BLOCKS[name]
    module, text = make(block(), padding), words()
    regions = (quarters(),) if name == "corrclip" else ()
    prediction = module(images(), text, *regions)
    assert isinstance(prediction, DensePrediction)
    assert prediction.scores.shape == (2, 5, *grid)
    assert prediction.num_classes == 3
    assert prediction.scores.abs().max() <= 1 + 1e-5
    assert prediction.semantic_scores((37, 44)).shape == (2, 3, 37, 44)
    # One image at a time gives the same: nothing is shared over the batch.
    alone = module(images()[1:], text, *(maps[1:] for maps in regions))
    torch.testing.assert_close(prediction.scores[1:], alone.scores, atol=2e-5, rtol=1e-4)
    assert not list(module.last_block.parameters()) or not any(p.requires_grad for p in module.last_block.parameters())


@torch.no_grad()
def test_clip_itself_and_maskclip_are_settings_of_the_token_attention() -> None:
    module = make(TokenAttention(["query-key"]))
    normalized = module.normalize(images(32, 32))
    ours = module.last_block(module.tower, normalized, normalized)
    torch.testing.assert_close(ours, module.tower.dense_features(normalized, "attention"), atol=1e-5, rtol=1e-4)
    ours = TokenAttention(["identity"])(module.tower, normalized, normalized)
    torch.testing.assert_close(ours, module.tower.dense_features(normalized, "value"), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_residual_only_the_attention_is_left() -> None:
    module = make(TokenAttention(["identity"], None, keep_residual=False))
    tower = module.tower
    inputs, grid = block_inputs(tower, module.normalize(images(32, 40)))
    last = tower.blocks[-1]
    width = tower.width
    value = functional.linear(
        last.ln_1(inputs[-1]), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :]
    )
    expected = last.attn.out_proj(value)
    assert isinstance(module.last_block, TokenAttention)
    torch.testing.assert_close(module.last_block.run(last, inputs[-1], grid), expected, atol=1e-5, rtol=1e-4)


def test_the_gaussian_goes_by_distance_in_patches_and_leaves_the_class_token() -> None:
    bias = gaussian_bias((3, 4), 2.0, torch.zeros(1))
    assert bias.shape == (13, 13)
    assert bias[0].eq(0).all()
    assert bias[:, 0].eq(0).all()
    assert bias.diagonal()[1:].eq(1).all()
    # Patch (0, 1) and patch (2, 3) are 2 rows and 2 columns apart.
    torch.testing.assert_close(bias[1 + 1, 1 + 11], torch.tensor(-8 / 8.0).exp())


@torch.no_grad()
def test_padding_is_centred_and_has_the_mean_colour() -> None:
    seen: dict[str, Tensor] = {}

    class Spy(TokenAttention):
        def forward(self, tower: Any, images: Tensor, colors: Tensor, regions: Tensor | None = None) -> Tensor:
            seen["images"], seen["colors"] = images, colors
            return super().forward(tower, images, colors, regions)

    module = make(Spy(), 24)
    features, padding = module.dense_features(images())
    assert padding == (2, 2, 5, 6)
    assert seen["images"].shape == (2, 3, 48, 48)
    assert seen["images"][..., :5, :].eq(0).all()
    torch.testing.assert_close(seen["images"][..., 5:42, 2:46], module.normalize(images()))
    torch.testing.assert_close(seen["colors"][0, :, 0, 0], module.clip.mean.flatten())
    torch.testing.assert_close(features, make(Spy(), 24).dense_features(images())[0])


def test_the_published_rounding_is_used_for_clips_own_normalisation() -> None:
    module = make(TokenAttention())
    mean = module.normalize.mean.flatten() * 255
    torch.testing.assert_close(mean, torch.tensor([122.771, 116.746, 104.094]))
    exact = make(TokenAttention(), rounded_normalization=False)
    assert not torch.allclose(exact.normalize.mean, module.normalize.mean, atol=1e-7, rtol=0)
    torch.testing.assert_close(exact.normalize.mean, exact.clip.mean)


@torch.no_grad()
def test_proxy_attention_keeps_what_is_more_alike_than_the_mean() -> None:
    features = functional.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    block = ProxyAttention(ColorProxy(), shift=1.1, scale=2.0)
    found = block.attention(features)
    for image, attention in zip(features, found, strict=True):
        similarity = image @ image.T
        logits = 2.0 * (similarity - 1.1 * similarity.mean())
        expected = torch.where(logits < 0, 0, logits.exp())
        torch.testing.assert_close(attention, expected / expected.sum(1, keepdim=True))


@torch.no_grad()
def test_a_window_of_one_colour_gives_numbers() -> None:
    flat = torch.full((1, 3, 48, 48), 77, dtype=torch.uint8)
    for block in (ProxyAttention(ColorProxy(4)), RegionCorrelation(ColorProxy(4))):
        regions = (torch.zeros(1, 48, 48, dtype=torch.int32),) if block.needs_regions else ()
        assert make(block, 24)(flat, words(), *regions).scores.isfinite().all()


@torch.no_grad()
def test_dino_and_dinov2_with_registers_stand_beside_clip() -> None:
    small = {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}
    for model, grid in (("vit_small_patch8_224", (7, 7)), ("vit_small_patch14_reg4_dinov2", (4, 4))):
        torch.manual_seed(0)
        proxy = DINOProxy(DINOSettings(model, None, small))
        module = make(ProxyAttention(proxy), 56)
        scores = module(images(), words()).scores
        assert scores.shape == (2, 5, *grid)
        assert not any(p.requires_grad for p in module.parameters())


# CorrCLIP ----------------------------------------------------------------------------------------------------------


def test_regions_that_look_alike_are_merged_through_others() -> None:
    angles = torch.tensor([0.0, 0.0, 0.6, 1.2, 3.0])  # of the features of five regions; the first covers nothing
    regions = torch.tensor([[[3, 5, 6], [8, 9, 9]]])
    of_patch = torch.tensor([0, 1, 2, 3, 4, 4])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)[of_patch][None]
    # 5 and 6, and 6 and 8, are 1 - cos(0.6) = 0.17 apart; 5 and 8 are 0.64 apart and meet through 6.
    merged = RegionCorrelation(ColorProxy()).merge(features, regions)
    assert merged.tolist() == [[[3, MERGED, MERGED], [MERGED, MERGED + 1, MERGED + 1]]]
    apart = RegionCorrelation(ColorProxy(), merge_distance=0.1).merge(features, regions)
    assert apart.tolist() == [[[3, MERGED, MERGED + 1], [MERGED + 2, MERGED + 3, MERGED + 3]]]


def test_two_values_are_not_merged() -> None:
    regions = torch.tensor([[[0, 4], [4, 0]]])
    features = functional.normalize(torch.ones(1, 4, 3), dim=2)
    assert torch.equal(RegionCorrelation(ColorProxy()).merge(features, regions), regions)


def test_attention_stays_within_regions_and_bare_patches_see_what_is_alike() -> None:
    features = functional.normalize(torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(4)), dim=2)
    merged = torch.tensor([[[0, 10000, 10000], [10001, 10001, 0]]])
    found = RegionCorrelation(ColorProxy(), temperature=3.0).attention(features, merged)[0]
    similarity, flat = features[0] @ features[0].T, merged.flatten()
    for i in range(6):
        for j in range(6):
            if flat[i] == 0 or flat[j] == 0:
                allowed = bool(similarity[i, j] > similarity.mean())
            else:
                allowed = bool(flat[i] == flat[j])
            assert (found[i, j] > 0) == allowed, (i, j)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    torch.testing.assert_close(found[1, 1] / found[1, 2], (3 * (1 - similarity[1, 2])).exp())


@torch.no_grad()
def test_region_tokens_are_those_of_a_masked_sequence_with_copies_in_front() -> None:
    block = RegionCorrelation(ColorProxy(4))
    module = make(block, 24)
    tower = module.tower
    inputs, grid = block_inputs(tower, module.normalize(images(48, 48)))
    regions = functional.interpolate(quarters()[:, None].float(), grid, mode="nearest")[:, 0].long()
    numbers = region_numbers(regions)
    found = block.region_tokens(tower, inputs, numbers)
    for image in range(2):
        count = int(numbers[image].max()) + 1
        tokens = torch.cat([inputs[0][image : image + 1, :1].expand(-1, count, -1), inputs[0][image : image + 1]], 1)
        allowed = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        allowed[count:, count:] = True
        allowed[:count, count] = True
        for region in range(count):
            allowed[region, count + 1 :] = numbers[image].flatten() == region
        for part in tower.blocks:
            tokens = run_block(part, tokens, allowed)
        torch.testing.assert_close(found[image, :count], tokens[0, :count], atol=1e-5, rtol=1e-4)


def test_the_spatial_branch_averages_the_blocks_before_the_last_but_one() -> None:
    block = RegionCorrelation(ColorProxy())
    inputs = [torch.full((1, 1, 1), float(number)) for number in range(12)]  # what enters blocks 0..11
    # Outputs of blocks 5..9 enter blocks 6..10.
    assert block.spatial_tokens(inputs).item() == sum(range(6, 11)) / 5
    assert block.spatial_tokens(inputs[:6]).item() == (3 + 4) / 2
    with pytest.raises(InputError, match="needs at least 5; this CLIP has 4"):
        block.spatial_tokens(inputs[:4])


# Words -------------------------------------------------------------------------------------------------------------


def test_words_of_the_publication_compete() -> None:
    module = make(TokenAttention(), class_names="sclip")
    text = module.words(Vocabulary.load("pascal_voc_20")).text
    assert len(text.vectors) == 30
    assert text.num_classes == 20
    assert text.class_index[:5].tolist() == [0, 1, 2, 3, 4]
    own = module.words(Vocabulary.from_words(["sky", "car, automobile"])).text
    assert own.class_index.tolist() == [0, 1, 1]
    assert len(make(TokenAttention(), class_names=None).words(Vocabulary.load("pascal_voc_20")).text.vectors) != 30


def test_the_vocabulary_of_the_answer_keeps_its_names() -> None:
    vocabulary = Vocabulary.load("pascal_voc_20")
    assert make(TokenAttention()).words(vocabulary).vocabulary == vocabulary


# Bad input ---------------------------------------------------------------------------------------------------------


def test_a_convolutional_clip_is_refused() -> None:
    with pytest.raises(InputError, match="vision transformer"):
        TrainingFree(clip=CLIPSettings("toy_convnext"))


def test_a_transformer_without_a_class_token_is_refused() -> None:
    pooled = TINY_CLIP | {"vision_cfg": TINY_CLIP["vision_cfg"] | {"attentional_pool": True}}
    with pytest.raises(InputError, match="class token"):
        TrainingFree(clip=CLIPSettings("pooled", config=pooled))


def test_an_unknown_proxy_model_is_refused() -> None:
    with pytest.raises(InputError, match="timm has no model 'dino_vitb8'"):
        DINOProxy(DINOSettings("dino_vitb8"))


def test_a_missing_region_map_is_named() -> None:
    with pytest.raises(InputError, match="CorrCLIP needs a map of regions beside every image"):
        make(RegionCorrelation(ColorProxy(4)), 24)(images(), words())


def test_neighbours_alone_need_a_deviation() -> None:
    with pytest.raises(InputError, match="needs `neighbourhood`"):
        TokenAttention(["neighbours"])


def speak_of_patches(module: TrainingFree, *inputs: Tensor) -> None:
    """Give the method words that its own patches answer to in different ways, as a random CLIP's words do not."""
    patches = module.dense_features(*inputs)[0].flatten(2).transpose(1, 2).flatten(0, 1)
    vectors = functional.normalize((patches - patches.mean(0))[:: len(patches) // 4][:4], dim=1)
    text = TextEmbeddings(vectors, torch.tensor([0, 0, 1, 2]), 3)
    module.words = lambda vocabulary: Words(vocabulary, text)  # type: ignore[method-assign]


@torch.no_grad()
def test_the_segmenter_hands_each_image_its_own_region_map() -> None:
    module = make(RegionCorrelation(ColorProxy(4)), 24, inference=WordInference(SlidingWindow(32, 24, 4)))
    speak_of_patches(module, images(), quarters())
    segmenter = module.segmenter(Vocabulary.from_words(["sky, cloud", "sea", "sand"]))
    pictures = [images(40, 48)[0], images(36, 36)[0], images(40, 48)[1]]
    sizes = [(50, 60), (30, 30), (50, 60)]
    maps = [quarters(*size)[1] for size in sizes]
    together = segmenter(pictures, sizes, regions=maps)
    for index, found in enumerate(together):
        alone = segmenter([pictures[index]], [sizes[index]], regions=[maps[index]])
        assert torch.equal(found.labels, alone[0].labels)
    other = segmenter([pictures[0]], [sizes[0]], regions=[torch.zeros(50, 60, dtype=torch.int32)])
    assert not torch.equal(other[0].labels, together[0].labels), "the regions make a difference"
    with pytest.raises(InputError, match="CorrCLIP needs a map of regions"):
        segmenter(pictures, sizes)


@torch.no_grad()
def test_labels_are_one_within_a_region() -> None:
    inference = WordInference(WholeImage(), correct_regions=True)
    module = make(RegionCorrelation(ColorProxy(4)), 24, inference=inference)
    regions = quarters(48, 48)[0]
    speak_of_patches(module, images(48, 48), quarters(48, 48))
    (found,) = module.segmenter(Vocabulary.from_words(["sky", "sea", "sand"]))(
        [images(48, 48)[0]], [(48, 48)], regions=[regions]
    )
    for region in (1, 2):
        assert len(found.labels[regions == region].unique()) == 1
    assert len(found.labels.unique()) > 1


def test_thresholds_refuse_a_vocabulary_without_background() -> None:
    inference = WordInference(WholeImage(), WordRules(probability_threshold=0.2))
    module = make(TokenAttention(), inference=inference)
    with pytest.raises(InputError, match="class 0 of 'words' is 'sky'"):
        module.segmenter(Vocabulary.from_words(["sky", "sea"]))
    module.segmenter(Vocabulary.from_words(["background", "sea"]))
    # The list of the publication has other words for the background; the class is still the background.
    module.segmenter(Vocabulary.load("pascal_voc_21"))
