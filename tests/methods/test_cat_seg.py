"""CAT-Seg: what trains, texts that are never stale, forms that give the same result, the release, published sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings, build_network
from ovsl.clip.split_attention import pack_attention
from ovsl.errors import InputError
from ovsl.inference import WholeImage
from ovsl.methods import CATSeg
from ovsl.methods.cat_seg import CATSegSizes, official
from ovsl.methods.cat_seg.inference import WindowsAndGlobalView
from ovsl.methods.cat_seg.text import TrainedTextClassifier
from ovsl.runs.record import saved_state
from ovsl.tools.profile import count_multiply_adds
from ovsl.vocabulary import ClassNames, Vocabulary
from tests.golden.harness import SHIPPED

CLIP: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"layers": 3, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 24},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 12, "heads": 2, "layers": 2},
    "quick_gelu": True,
}
SIZES = CATSegSizes(
    input_size=(32, 32), guidance_blocks=(0, 1), guidance_widths=(8, 6), decoder_guidance_widths=(3, 2),
    appearance_width=6, text_width=5, width=12, num_heads=2, window_size=2, max_classes=8, decoder_widths=(16, 16),
)  # fmt: skip
LARGE = {"input_size": (336, 336), "guidance_blocks": (7, 15)}
PUBLISHED = {"ViT-B-16": CATSegSizes(), "ViT-L-14-336": CATSegSizes(**LARGE)}  # type: ignore[arg-type]
WORDS = replace(Vocabulary.from_words(["cat", "sky", "grass", "river"]), seen=(True, False, True, True))


def build(sizes: CATSegSizes = SIZES, **options: Any) -> CATSeg:
    torch.manual_seed(0)
    module = CATSeg(clip=CLIPSettings("tiny", config=CLIP), sizes=sizes, **options)
    for layer in module.network.layers:
        for name, parameter in layer.classes.named_parameters():
            if name.startswith("padding"):  # zero at first, which hides much
                torch.nn.init.normal_(parameter)
    module.training_vocabulary = WORDS
    return module


def batch(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "semantic": torch.randint(0, 4, (2, 32, 32), generator=generator),
        "id": ["0", "1"],
    }


def random_text(num_classes: int, dimension: int = 12) -> TextEmbeddings:
    vectors = torch.nn.functional.normalize(torch.randn(num_classes, dimension), dim=1)
    return TextEmbeddings(vectors, torch.arange(num_classes), num_classes)


def step(module: CATSeg, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> None:
    optimizer = optimizer or torch.optim.AdamW(list(module.parameter_groups(2e-4)), lr=1e-2)
    optimizer.zero_grad()
    sum(module.losses(batch(seed)).weighted.values()).backward()  # type: ignore[union-attr]
    optimizer.step()


# What trains ---------------------------------------------------------------------------------------------------------


def test_of_clip_exactly_queries_and_values_train_and_are_stored() -> None:
    module = build(clip_rate=1.0)
    trained = re.compile(r"(visual\.)?transformer\.resblocks\.\d\.attn\.[qv]_proj_weight")
    before = {name: tensor.clone() for name, tensor in module.clip.model.state_dict().items()}
    for seed in range(2):
        step(module, seed=seed)
    changed = {name for name, tensor in module.clip.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if trained.fullmatch(name)}
    assert len(changed) == 2 * (3 + 2)
    stored = {
        name.removeprefix("clip.model.")
        for name in saved_state(module, module.state_dict())
        if name.startswith("clip.")
    }
    assert stored == changed


def test_a_split_attention_computes_what_the_packed_one_did() -> None:
    torch.manual_seed(0)
    plain = build_network(CLIP)
    module = build()
    plain.load_state_dict(pack_attention(module.clip.model.state_dict()))
    tokens = module.clip.tokenize(["a cat", "a river in the sky"])
    torch.testing.assert_close(module.clip.encode_text(tokens), plain.encode_text(tokens))  # type: ignore[operator]
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(module.clip.model.encode_image(images), plain.encode_image(images))  # type: ignore[operator]


def test_rates_and_decays_of_the_groups() -> None:
    module = build()
    groups = {group["name"]: group for group in module.optimizer(list(module.parameter_groups(2e-4))).param_groups}
    settings = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert settings == {"network": (2e-4, 1e-4), "norms": (2e-4, 0.0), "clip": (0.01 * 2e-4, 1e-4)}
    assert sum(len(group["params"]) for group in groups.values()) == sum(p.requires_grad for p in module.parameters())


def test_a_frozen_clip_and_one_that_trains_whole_are_rows_of_the_ablation() -> None:
    frozen = build(train_clip=())
    assert not any(name.startswith("clip.") for name in saved_state(frozen, frozen.state_dict()))
    assert [group["name"] for group in frozen.parameter_groups(2e-4)] == ["network", "norms"]
    text = frozen.training_classes.text()
    assert not text.vectors.requires_grad
    assert frozen.training_classes.text().vectors is text.vectors
    images_only = build(train_clip=("visual.transformer",))
    assert images_only.training_classes.text().vectors is images_only.training_classes.text().vectors


def test_ignored_pixels_and_unseen_classes_are_negatives_of_every_fed_class() -> None:
    module = build()
    first = batch()
    hidden = {**first, "semantic": first["semantic"].masked_fill(first["semantic"] == 1, WORDS.ignore_index)}
    with torch.no_grad():
        (loss,), (same,) = module.losses(first).weighted.values(), module.losses(hidden).weighted.values()
        logits = module.run_network(first["image"], module.training_classes.text()).logits
    assert torch.equal(loss, same)
    positives = torch.stack([first["semantic"] == c for c in (0, 2, 3)], dim=1).float()
    logits = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    # Softplus of the logits, and of the opposite where a class is.
    expected = torch.nn.functional.softplus(torch.where(positives.bool(), -logits, logits)).mean()
    torch.testing.assert_close(loss, expected)


# Texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["for loop", "foreach", "fused"])
def test_no_stale_text_after_an_optimiser_step(kind: str) -> None:
    module = build(clip_rate=1.0)
    options = {"foreach": kind == "foreach", "fused": kind == "fused"}
    optimizer = torch.optim.AdamW(list(module.parameter_groups(2e-4)), lr=1e-2, **options)
    for seed in range(2):
        with torch.no_grad():
            before = module.text_classifier(WORDS)
            assert module.text_classifier(WORDS).vectors is before.vectors
        step(module, optimizer, seed)
        with torch.inference_mode():
            after = module.text_classifier(WORDS).vectors
            fresh = TrainedTextClassifier(module.clip, "cat_seg")(WORDS).vectors
        assert torch.equal(after, fresh)
        assert (after - before.vectors).abs().max() > 1e-3
        assert torch.equal(before.seen, torch.tensor(WORDS.seen))  # type: ignore[arg-type]


def test_no_stale_text_after_a_checkpoint_was_loaded() -> None:
    module, trained = build(clip_rate=1.0), build(clip_rate=1.0)
    step(trained)
    with torch.no_grad():
        before = module.text_classifier(WORDS).vectors
        module.load_state_dict(saved_state(trained, trained.state_dict()), strict=False)
        after = module.text_classifier(WORDS).vectors
        assert torch.equal(after, trained.text_classifier(WORDS).vectors)
    assert not torch.equal(before, after)


def test_the_text_tower_runs_once_a_step_for_the_fed_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = build(), []
    run_tower = TrainedTextClassifier.run_tower
    monkeypatch.setattr(
        TrainedTextClassifier, "run_tower", lambda self, tokens: seen.append(len(tokens)) or run_tower(self, tokens)
    )
    for seed in range(2):
        step(module, seed=seed)
    assert seen == [3, 3]


@pytest.mark.parametrize("options", [{}, {"checkpoint_activations": True}])
def test_prompts_cut_behind_the_longest_give_what_whole_ones_do(options: dict[str, bool]) -> None:
    module = build(**options)
    text = module.text_classifier(WORDS)
    assert text.vectors.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(module.text_classifier(WORDS).vectors, text.vectors)


def test_several_templates_make_one_unit_embedding() -> None:
    module = build(templates="imagenet_7")
    text = module.text_classifier(WORDS)
    assert text.vectors.shape == (4, 12)
    torch.testing.assert_close(text.vectors.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        torch.testing.assert_close(module.text_classifier(WORDS).vectors, text.vectors)


def test_synonyms_compete_after_the_aggregation() -> None:
    module = build(synonyms="max").eval()
    words = Vocabulary.from_words(["cat, kitten", "sky"])
    with torch.no_grad():
        text = module.text_classifier(words)
        rows = module.run_network(batch()["image"], text).logits
        scores = module(batch()["image"], text).scores
    assert rows.shape[1] == 3
    torch.testing.assert_close(scores, torch.stack([rows[:, :2].amax(1), rows[:, 2]], dim=1))


def test_names_are_shown_up_to_their_first_comma_or_as_the_release_has_them() -> None:
    classifier = build(class_names="cat_seg").text_classifier
    prompts = classifier.prompts(classifier.names(Vocabulary.load("ade20k_150")))  # type: ignore[attr-defined]
    assert prompts[6] == "A photo of a road in the scene"
    assert prompts[8] == "A photo of a windowpane in the scene"
    other = classifier.names(Vocabulary.load("pascal_context_59"))  # type: ignore[attr-defined]
    assert ("window",) in other


def test_pascal_context_is_shown_without_blanks() -> None:
    assert len(ClassNames("cat_seg").of(Vocabulary.load("pascal_context_459"))) == 94


def test_background_is_whatever_is_one_of_the_other_names() -> None:
    """Each name is a class of its own in the network; labels are joined after the arg-max."""
    module = build(class_names="cat_seg").eval()
    images = batch()["image"]
    with torch.no_grad():
        segmenter = module.segmenter(Vocabulary.load("pascal_voc_21"))
        segmenter.inference = WholeImage()
        words = segmenter.words
        assert len(words.text.vectors) == words.text.num_classes == 39 + 20
        labels = [found.labels for found in segmenter(list(images), [(32, 32)] * 2)]
        scores = module(images, words.text).semantic_scores((32, 32))
        joined = segmenter.scores(images)
    expected = torch.where(scores.argmax(1) < 39, 0, scores.argmax(1) - 38)
    assert torch.equal(torch.stack(labels), expected)
    torch.testing.assert_close(joined, torch.cat([scores[:, :39].amax(1, keepdim=True), scores[:, 39:]], dim=1))


# Forms with one result -----------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"class_attention": "full"},
    {"max_classes": 0},
    {"max_classes": 5},
    {"max_classes": 6, "class_attention": "full"},
    {"text_width": 0},
    {"appearance_width": 0, "decoder_guidance_widths": (0, 0)},
    {"evaluation_pooling": (2, 2)},
    {"evaluation_pooling": (2, 1)},
    {"window_size": 4},
    {"num_layers": 1, "num_heads": 3},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("num_classes", [3, 6])
def test_chunks_and_broadcasting_change_nothing(variant: dict[str, Any], num_classes: int) -> None:
    """Two classes at a time, all at once, and as released: padding and guidance repeated."""
    found = []
    text = random_text(num_classes).vectors.double()
    for chunk, as_released in ((2, False), (100, False), (100, True), (2, True)):
        module = build(replace(SIZES, **variant), class_chunk_size=chunk).eval().double()
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found.append(module.network(module.tower, images, text, as_released=as_released).logits)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("variant", [{}, {"max_classes": 2}], ids=str)
def test_recomputed_activations_give_the_same_gradients(variant: dict[str, Any]) -> None:
    gradients = []
    for options in ({}, {"checkpoint_activations": True, "class_chunk_size": 2}):
        module = build(replace(SIZES, **variant), **options).double()
        (loss,) = module.losses(batch()).weighted.values()
        loss.backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-9, rtol=1e-6, msg=name)


def test_the_order_of_the_classes_does_not_matter() -> None:
    module, text = build(replace(SIZES, max_classes=4)).eval(), random_text(6)
    order = [3, 1, 5, 0, 2, 4]
    with torch.no_grad():
        plain = module(batch()["image"], text).scores
        permuted = module(batch()["image"], replace(text, vectors=text.vectors[order])).scores
    torch.testing.assert_close(permuted, plain[:, order])
    assert (plain == -100).all(dim=(2, 3)).sum(dim=1).tolist() == [2, 2]


def test_labels_of_the_five_views_are_those_of_the_scores() -> None:
    module, text = build().eval(), random_text(7)
    inference = WindowsAndGlobalView(image_size=80, crop_size=48, overlap=0.333, view_batch_size=2, class_chunk_size=2)
    images = torch.randint(256, (2, 3, 50, 61), dtype=torch.uint8)

    def predict(views: Tensor) -> Any:
        return module(views, text)

    with torch.no_grad():
        scores = inference.scores(predict, images, (45, 55))
        labels = inference.labels(predict, images, (45, 55))
        alone = inference.scores(predict, images[1:], (45, 55))
    assert scores.shape == (2, 7, 45, 55)
    assert torch.equal(scores.argmax(1), labels)
    torch.testing.assert_close(alone[0], scores[1])


def test_a_plain_whole_image_is_an_inference_like_any_other() -> None:
    module, text = build().eval(), random_text(5)
    with torch.no_grad():
        labels = WholeImage().labels(lambda images: module(images, text), batch()["image"], (20, 30))
    assert labels.shape == (2, 20, 30)


# Settings that cannot be ---------------------------------------------------------------------------------------------


def test_impossible_settings_are_named() -> None:
    with pytest.raises(InputError, match="guidance_blocks"):
        build(replace(SIZES, guidance_blocks=(0, 3)))
    with pytest.raises(InputError, match="vision transformer"):
        CATSeg(clip=CLIPSettings("toy_convnext"))
    with pytest.raises(InputError, match="window_size"):
        step(build(replace(SIZES, window_size=3)))


# The official release ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "total", "trainable", "tensors", "giga"),
    [
        ("ViT-B-16", 154_289_378, 25_115_873, 484, {150: 1505.6, 171: 1630.2, "train": 277.1}),
        ("ViT-L-14-336", 433_726_946, 70_270_177, 652, {150: 2189.2, 171: 2313.8, "train": 413.8}),
    ],
)
def test_published_sizes(name: str, total: int, trainable: int, tensors: int, giga: dict[int | str, float]) -> None:
    with torch.device("meta"), torch.no_grad():
        module = CATSeg(CLIPSettings(name, "random", quick_gelu=True), PUBLISHED[name]).eval()
        assert sum(p.numel() for p in module.parameters()) == total
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == trainable
        assert len(list(module.parameters())) == tensors - 2  # without the mask buffers
        image = torch.empty(1, 3, 480, 640)
        counts = {}
        for num_classes in (150, 171):
            text = TextEmbeddings(
                torch.empty(num_classes, module.clip.embedding_dimension), torch.arange(0), num_classes
            )
            released = count_multiply_adds(lambda text=text: module.released_network(image, text), False)
            views = module.network_input(module.inference.views(image))  # type: ignore[attr-defined]
            ours = count_multiply_adds(lambda t=text, v=views: module.network(module.tower, v, t.vectors), False)
            assert ours < 0.9 * released
            counts[num_classes] = round(released / 1e9, 1)
        module.train()
        images = torch.empty(1, 3, *PUBLISHED[name].input_size)
        counts["train"] = round(
            count_multiply_adds(lambda: module.network(module.tower, images, text.vectors, True), False) / 1e9, 1
        )
    assert counts == giga


@pytest.fixture(scope="module")
def release() -> dict[str, Tensor]:
    return load_file(SHIPPED / "cat_seg" / "mini" / "weights.safetensors")


def released_module(**options: Any) -> CATSeg:
    clip = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "context_length": 10, "vocab_size": 60}}
    return CATSeg(CLIPSettings("tiny", config=clip), replace(SIZES, text_width=6, max_classes=5), **options)


@pytest.mark.parametrize("train_clip", [("attn.q_proj_weight", "attn.v_proj_weight"), ()])
def test_every_official_weight_arrives(release: dict[str, Tensor], train_clip: tuple[str, ...]) -> None:
    module = released_module(train_clip=train_clip)
    official.convert(release, module)
    arrived = {name: parameter.detach() for name, parameter in module.named_parameters()}
    renamed = official.rename(release)
    expected = renamed if train_clip else pack_attention(renamed)
    assert arrived.keys() == expected.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in expected.items())
    assert len(renamed) == len(release) - sum(name.endswith("attn_mask") for name in release)


@pytest.mark.parametrize("change", ["missing", "unknown", "left over", "shape"])
def test_a_release_that_does_not_fit_is_refused(release: dict[str, Tensor], change: str) -> None:
    changed, head = dict(release), "sem_seg_head.predictor.transformer.head.bias"
    if change == "missing":
        del changed[head]
    elif change == "unknown":
        changed["backbone.weight"] = torch.zeros(1)
    elif change == "left over":
        changed["upsample3.bias"] = torch.zeros(1)
    else:
        changed[head] = torch.zeros(2)
    with pytest.raises(InputError):
        official.convert(changed, released_module())


def test_only_the_frozen_part_of_the_clip_has_to_agree(release: dict[str, Tensor]) -> None:
    module = released_module()
    official.convert(release, module)
    module.clip.pretrained = "openai"  # its frozen weights are taken as given
    block = "sem_seg_head.predictor.clip_model.transformer.resblocks.0.attn."
    official.convert({**release, f"{block}q_proj_weight": release[f"{block}q_proj_weight"] + 1}, module)
    with pytest.raises(InputError, match=r"another CLIP.*k_proj_weight"):
        official.convert({**release, f"{block}k_proj_weight": release[f"{block}k_proj_weight"] + 1}, module)


def test_settings_of_the_published_checkpoints_are_read_off() -> None:
    conv1 = "sem_seg_head.predictor.clip_model.visual.conv1.weight"
    for (width, patch), name in (((768, 16), "ViT-B-16"), ((1024, 14), "ViT-L-14-336")):
        found = official.settings({conv1: torch.empty(width, 3, patch, patch)})
        assert found["init_args"]["clip"] == {"model": name, "pretrained": "openai"}
        sizes = {key: tuple(value) for key, value in found["init_args"]["sizes"].items()}
        assert CATSegSizes(**sizes) == PUBLISHED[name]
        assert (found["vocabulary"], found["split"]) == ("coco_stuff_171", None)
    with pytest.raises(InputError, match="-c CONFIG"):
        official.settings({conv1: torch.empty(768, 3, 32, 32)})
