from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.errors import InputError
from ovsl.layers import interpolate_positions
from ovsl.methods import ZegCLIP
from ovsl.methods.zegclip import ZegCLIPSizes, official
from ovsl.methods.zegclip.module import pseudo_labels
from ovsl.vocabulary import Vocabulary
from tests.golden.harness import SHIPPED

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 24, "head_width": 8, "patch_size": 4, "image_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def build(split: str | None = "zero_shot_15_5", **options: Any) -> ZegCLIP:
    torch.manual_seed(0)
    sizes = {"num_prompts": 2, "num_layers": 2, "num_heads": 2, "feed_forward": 32}
    sizes |= {name: options.pop(name) for name in list(options) if name in ZegCLIPSizes.__annotations__}
    options["sizes"] = ZegCLIPSizes(**sizes)
    module = ZegCLIP(clip=CLIPSettings("tiny", quick_gelu=True, config=TINY), **options)
    module.training_vocabulary = Vocabulary.load("pascal_voc_20", split=split)
    return module


def batch(size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    semantic = torch.randint(20, (2, size, size), generator=generator)
    semantic[:, :4] = 255
    image = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    return {"image": image, "semantic": semantic, "id": ["a", "b"]}


def text(module: ZegCLIP) -> TextEmbeddings:
    assert module.training_vocabulary is not None
    return module.text_classifier(module.training_vocabulary)


def scores(module: ZegCLIP, images: Tensor, **options: Any) -> Tensor:
    return module(images, text(module)).semantic_scores((images.shape[-2], images.shape[-1]), **options)


def test_recomputed_activations_give_the_same_gradients() -> None:
    results = []
    for again in (False, True):
        module, kept = build(checkpoint_activations=again), []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            total = torch.stack(list(module.losses(batch(32)).weighted.values())).sum()
        total.backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        results.append((total, gradients, sum(kept)))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    assert results[1][2] < 0.9 * results[0][2]


def test_training_changes_prompts_and_decoder_and_leaves_the_clip_bit_identical() -> None:
    module = build()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = module.optimizer(list(module.parameter_groups(1.0)))
    for _ in range(2):
        optimizer.zero_grad()
        sum(module.losses(batch()).weighted.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    after = dict(module.named_parameters())
    assert all(torch.equal(before[name], p) for name, p in after.items() if name.startswith("clip."))
    same = {name for name, p in after.items() if not name.startswith("clip.") and torch.equal(before[name], p)}
    assert same == set(module._ddp_params_and_buffers_to_ignore)


@pytest.mark.parametrize(
    ("num_prompts", "trainable", "with_gradient"), [(10, 13_821_184, 8_039_168), (100, 14_650_624, 8_868_608)]
)
def test_published_parameter_counts(num_prompts: int, trainable: int, with_gradient: int) -> None:
    with torch.device("meta"):
        module = ZegCLIP(clip=CLIPSettings("ViT-B-16", "random", quick_gelu=True), sizes=ZegCLIPSizes(num_prompts))
    sizes = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    assert sum(sizes.values()) == trainable
    assert trainable - sum(sizes[name] for name in module._ddp_params_and_buffers_to_ignore) == with_gradient


@pytest.mark.parametrize(
    ("total", "step", "rate"),
    [
        (20000, 0, 2.0e-10),
        (20000, 750, 9.663559e-5),
        (20000, 1500, 1.865157e-4),
        (80000, 40000, 1.076415e-4),
        (80000, 79999, 1.007693e-6),
    ],
)
def test_default_schedule_is_the_published_one(total: int, step: int, rate: float) -> None:
    assert build().schedule.learning_rate(2e-4, step, total) == pytest.approx(rate, rel=1e-5)


def test_all_that_trains_has_the_published_rate_and_decay() -> None:
    module = build()
    optimizer = module.optimizer(list(module.parameter_groups(1.0)))
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(2e-4, 0.01)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        p.requires_grad for p in module.parameters()
    )


def test_labels_of_unseen_classes_reach_no_loss() -> None:
    module = build(dropout=0.0)
    first = batch()
    second = {**first, "semantic": first["semantic"].where(first["semantic"] < 15, 255)}
    third = {**first, "semantic": first["semantic"].where(first["semantic"] < 15, 17)}
    found = [torch.stack(list(module.losses(b).weighted.values())) for b in (first, third, second)]
    # An ignored pixel is a negative of every class, and so is a pixel of an unseen class.
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0][0], found[2][0])


def test_self_training_knows_where_unseen_pixels_are_but_not_what_they_are() -> None:
    module = build(dropout=0.0, self_training_start=0)
    first = batch()
    hidden = (first["semantic"] >= 15) & (first["semantic"] != 255)
    second = {**first, "semantic": first["semantic"].where(~hidden, 19)}
    logits, labels = module.training_pair(first)
    _, other_labels = module.training_pair(second)
    assert logits.shape[1] == 20
    assert torch.equal(labels, other_labels)
    assert torch.equal(labels[~hidden], first["semantic"][~hidden])
    assert ((labels[hidden] >= 15) & (labels[hidden] < 20)).all()


def test_self_training_starts_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(self_training_start=10)
    assert module.training_pair(batch())[0].shape[1] == 15
    monkeypatch.setattr(ZegCLIP, "global_step", 10)
    assert module.training_pair(batch())[0].shape[1] == 20


def test_pseudo_labels_are_the_best_unseen_class() -> None:
    logits = torch.tensor([9.0, 1.0, 8.0, 2.0]).view(1, 4, 1, 1)
    assert pseudo_labels(logits, torch.tensor([1, 3])).item() == 3


def test_self_training_without_unseen_classes_is_refused() -> None:
    with pytest.raises(InputError, match="unseen"):
        build(split=None, self_training_start=0).losses(batch())


def test_a_class_is_scored_independently_of_the_other_classes() -> None:
    module = build().eval()
    some = [3, 17, 19]
    images = batch()["image"]
    assert module.training_vocabulary is not None
    chosen = module.text_classifier(module.training_vocabulary.subset(some))
    few = module(images, chosen).semantic_scores((16, 16))
    torch.testing.assert_close(few, scores(module, images)[:, some])


def test_seen_scores_are_lowered_in_the_inductive_setting_only() -> None:
    images = batch()["image"]
    plain = scores(build(seen_offset=0.0).eval(), images)
    inductive = scores(build().eval(), images)
    torch.testing.assert_close(plain[:, :15] - 0.1, inductive[:, :15])
    torch.testing.assert_close(plain[:, 15:], inductive[:, 15:])
    torch.testing.assert_close(plain, scores(build(self_training_start=0).eval(), images))
    # Trained on all classes, a split only says how to report.
    supervised = build(split=None).eval()
    reported = supervised.words(Vocabulary.load("pascal_voc_20", split="zero_shot_15_5"))
    assert reported.vocabulary.unseen_indices == [15, 16, 17, 18, 19]
    torch.testing.assert_close(supervised(images, reported.text).semantic_scores((16, 16)), plain - 0.1)


@pytest.mark.parametrize("options", [{}, {"deep_prompt_layers": 0}, {"deep_prompt_layers": -2}, {"num_prompts": 0}])
@pytest.mark.parametrize("size", [(12, 20), (20, 20)])
def test_grids_need_be_neither_square_nor_even(options: dict[str, int], size: tuple[int, int]) -> None:
    module = build(**options).eval()
    images = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    assert module.mask_logits(images, text(module)).shape == (1, 20, size[0] // 4, size[1] // 4)


def test_images_are_normalised_as_published_and_the_clip_keeps_its_own() -> None:
    published, plain = build(), build(normalization="clip")
    assert torch.equal(published.clip.mean, plain.clip.mean)
    assert plain.normalize is plain.clip.normalize
    image = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    expected = (255 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(published.normalize(image).flatten(), expected)
    assert not [name for name in published.state_dict() if "normalize" in name]


def test_deep_prompts_do_not_outlive_their_block() -> None:
    module = build(num_prompts=5, deep_prompt_layers=1).eval()
    encoder = module.network.encoder
    tokens, _ = encoder.embed(torch.randn(1, 3, 16, 16))
    assert [t.shape[1] for t in encoder.intermediate_tokens(tokens)] == [1 + 5 + 16, 1 + 5 + 16, 1 + 16]


def test_the_baseline_of_the_ablation_has_neither_prompts_nor_descriptor() -> None:
    module = build(num_prompts=0, loss="exclusive", relationship_descriptor=False)
    assert not [name for name, _ in module.named_parameters() if "prompt" in name]
    assert module.network.decoder.q_proj.in_features == 16
    losses = module.losses(batch()).weighted
    assert list(losses) == ["cross_entropy"]
    unlabelled = {**batch(), "semantic": torch.full((2, 16, 16), 255)}
    assert module.losses(unlabelled).weighted["cross_entropy"] == 0
    torch.testing.assert_close(module.eval()(batch()["image"], text(module)).scores.sum(1), torch.ones(2, 4, 4))


@pytest.mark.parametrize("options", [{"deep_prompt_layers": 3}, {"num_heads": 3}])
def test_impossible_settings_are_named(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        build(**options)


# The official release ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release() -> dict[str, Tensor]:
    return load_file(SHIPPED / "zegclip" / "mini_inductive" / "weights.safetensors")


def released_module() -> ZegCLIP:
    return build(feed_forward=64)


def test_every_official_weight_arrives(release: dict[str, Tensor]) -> None:
    module = released_module()
    official.convert(release, module)
    arrived = dict(module.named_parameters())
    for name, tensor in official.rename(release).items():
        assert torch.equal(arrived[name], tensor)
    assert len(official.rename(release)) == len(release) - 1  # without the unused `empty_weight`


@pytest.mark.parametrize("change", ["missing", "unknown", "left over", "shape"])
def test_a_release_that_does_not_fit_is_refused(release: dict[str, Tensor], change: str) -> None:
    changed = dict(release)
    if change == "missing":
        del changed["decode_head.q_proj.bias"]
    elif change == "unknown":
        changed["neck.weight"] = torch.zeros(1)
    elif change == "left over":
        changed["decode_head.decoder_1.layers.2.norm2.weight"] = torch.zeros(16)
    else:
        changed["decode_head.q_proj.bias"] = torch.zeros(7)
    with pytest.raises(InputError):
        official.convert(changed, released_module())


def test_a_release_on_another_clip_is_refused(release: dict[str, Tensor]) -> None:
    module = released_module()
    module.clip.pretrained = "openai"  # its weights are taken as given, so they have to agree
    with pytest.raises(InputError, match="another CLIP"):
        official.convert(release, module)


def test_positions_stored_at_the_training_size_agree_with_those_of_the_clip(release: dict[str, Tensor]) -> None:
    module = released_module()
    official.convert(release, module)
    module.clip.pretrained = "openai"
    resized = interpolate_positions(release["backbone.positional_embedding"].float(), (6, 6), "bilinear")
    official.convert({**release, "backbone.positional_embedding": resized}, module)
    with pytest.raises(InputError, match="positional_embedding"):
        official.convert({**release, "backbone.positional_embedding": resized.flip(0)}, module)


def test_settings_of_the_published_checkpoints_are_read_off() -> None:
    tensors = {
        "backbone.conv1.weight": torch.empty(768, 3, 16, 16),
        "backbone.prompt_embeddings": torch.empty(1, 100, 768),
        "decode_head.loss_decode.criterion.empty_weight": torch.empty(157),
    }
    found = official.settings(tensors)
    assert found["init_args"]["sizes"] == {"num_prompts": 100}
    assert found["init_args"]["templates"] == "zegclip_15"
    assert len(Vocabulary.load(found["vocabulary"], split=found["split"]).seen_indices) == 156
    with pytest.raises(InputError, match="-c CONFIG"):
        official.settings({**tensors, "decode_head.loss_decode.criterion.empty_weight": torch.empty(9)})
