from dataclasses import replace
from typing import Any

import pytest
import torch

from ovsl.clip import CLIPSettings, FrozenCLIP, TextEmbeddings
from ovsl.errors import InputError
from ovsl.layers import pad_to_multiple
from ovsl.methods.fc_clip import FCCLIP, FCCLIPSizes, MaskDecoderSizes, PixelDecoderSizes
from ovsl.methods.fc_clip.network import FCCLIPNetwork
from ovsl.methods.fc_clip.official import CLIP_PREFIX, rename, settings
from ovsl.methods.fc_clip.official import convert as convert_official
from ovsl.methods.no_object import merge_names
from ovsl.runs.record import saved_state
from ovsl.vocabulary import Vocabulary
from tests.waits import Waits

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}}
CONVNEXT = {"embed_dim": 16, "vision_cfg": {"image_size": 64, "convnext": {"depths": [1] * 4, "dims": [8, 12, 16, 24]}}}
VIT = {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}}


def build(tower: dict[str, Any] = CONVNEXT, **settings: Any) -> FCCLIP:
    torch.manual_seed(0)
    return FCCLIP(
        clip=CLIPSettings("tiny", config=tower | {"text_cfg": TEXT}),
        sizes=FCCLIPSizes(PixelDecoderSizes(32, 4, 2, 1, 16), MaskDecoderSizes(32, 6, 4, 2, 16)),
        num_points=32,
        **settings,
    )


def batch(unseen: int | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8, generator=generator)
    semantic = torch.zeros(2, 50, 70, dtype=torch.int64)
    semantic[:, :20] = 2
    semantic[1, 30:, 30:] = 255 if unseen is None else unseen
    return {"image": image, "semantic": semantic, "id": ["a", "b"]}


VOCABULARY = Vocabulary.from_words(["cat", "dog", "grass, lawn", "sky"])


@pytest.mark.parametrize("tower", [CONVNEXT, RESNET], ids=["convnext", "resnet"])
def test_training_leaves_the_clip_bit_identical_and_moves_the_rest(tower: dict[str, Any]) -> None:
    module = build(tower).train()
    module.training_vocabulary = VOCABULARY
    optimizer = torch.optim.AdamW(list(module.parameter_groups(1.0)), lr=1e-3)
    clip = {key: value.clone() for key, value in module.clip.state_dict().items()}
    network = {key: value.clone() for key, value in module.network.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(list(module.losses(batch()).weighted.values())).sum().backward()
        optimizer.step()
    assert all(torch.equal(value, clip[key]) for key, value in module.clip.state_dict().items())
    still = [key for key, value in module.network.named_parameters() if torch.equal(value, network[key])]
    assert not still
    assert all(key.startswith("network.") for key in saved_state(module, module.state_dict()))


def test_every_prediction_is_supervised() -> None:
    module = build()
    module.training_vocabulary = VOCABULARY
    suffixes = ["", "_0", "_1"]
    assert set(module.losses(batch()).weighted) == {
        f"loss_{kind}{s}" for kind in ("ce", "mask", "dice") for s in suffixes
    }


@pytest.mark.parametrize("panoptic", [False, True])
def test_on_an_accelerator_the_losses_wait_at_most_twice(panoptic: bool) -> None:
    """Once to know the number of masks, once for the costs of all levels and images."""
    module, data = build(), batch(unseen=1)
    module.training_vocabulary = replace(VOCABULARY, seen=(True, False, True, True))
    if panoptic:
        ids = torch.ones(2, 50, 70, dtype=torch.int32)
        ids[:, :20] = 2
        data |= {"segment_ids": ids, "segment_classes": [torch.tensor([0, 2]), torch.tensor([1, 2])]}
    module.losses(data)  # embeds the words
    with Waits() as waits:
        losses = module.losses(data).weighted
    assert len(losses) == 9
    assert [place.split(":")[0] for place in waits.places] == ["cpu in losses/targets.py", "cpu in losses/matcher.py"]


def test_inner_masks_are_those_of_the_resized_features() -> None:
    """Attention alone reads the inner masks of inference; brought to its size, features give the same cells."""
    torch.manual_seed(0)
    decoder = build().network.mask_decoder.double()
    features = torch.randn(2, 32, 24, 40, dtype=torch.float64)
    levels = [torch.randn(2, 32, 24 // stride, 40 // stride, dtype=torch.float64) for stride in (8, 4, 2)]
    (one,), all_of_them = (decoder(features, levels, auxiliary) for auxiliary in (False, True))
    assert len(all_of_them) == 3
    torch.testing.assert_close(one, all_of_them[-1], atol=1e-10, rtol=1e-8)


def test_labels_of_unseen_classes_do_not_reach_the_loss() -> None:
    module = build()
    module.training_vocabulary = replace(VOCABULARY, seen=(True, False, True, True))
    values = []
    for unseen in (None, 1):
        torch.manual_seed(0)
        values.append(torch.stack(list(module.losses(batch(unseen)).weighted.values())))
    assert torch.equal(*values)
    torch.manual_seed(0)
    assert not torch.equal(torch.stack(list(module.losses(batch(3)).weighted.values())), values[0])


def test_a_batch_without_a_label_trains_the_void_alone() -> None:
    module = build()
    module.training_vocabulary = VOCABULARY
    unlabelled = batch()
    unlabelled["semantic"].fill_(255)
    losses = module.losses(unlabelled).weighted
    assert all(value == 0 for name, value in losses.items() if "loss_ce" not in name)
    assert all(value > 0 for name, value in losses.items() if "loss_ce" in name)
    torch.stack(list(losses.values())).sum().backward()
    assert module.network.void_embedding.grad.abs().sum() > 0


def test_only_norms_and_embeddings_go_without_weight_decay() -> None:
    module = build()
    decayed, exempt = module.parameter_groups(1.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    without = {names[id(parameter)] for parameter in exempt["params"]}
    assert exempt["weight_decay"] == 0
    assert "weight_decay" not in decayed
    assert {
        "network.void_embedding",
        "network.mask_decoder.query_features",
        "network.mask_decoder.query_positions",
        "network.mask_decoder.level_embedding",
    } == {name for name in without if not name.endswith(("weight", "bias"))}
    with_decay = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"network.pixel_decoder.level_embedding", "network.logit_scale"} <= with_decay
    assert "network.pixel_decoder.lateral.1.weight" in without
    assert "network.pixel_decoder.mask_features.bias" in with_decay
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert without | with_decay == trainable
    assert not without & with_decay


def test_prediction_spans_the_padded_image_and_sums_to_one() -> None:
    module = build().eval()
    with torch.no_grad():
        prediction = module(batch()["image"], module.text_classifier(VOCABULARY))
    assert prediction.padded_size == (64, 96)
    assert prediction.mask_logits.shape == (2, 6, 16, 24)
    assert prediction.resized_mask_logits((50, 70)).shape == (2, 6, 50, 70)
    total = prediction.class_scores.sum(-1) + prediction.no_object_scores
    torch.testing.assert_close(total, torch.ones(2, 6))


def test_seen_classes_trust_the_trained_classifier_more() -> None:
    module = build().eval()
    image = batch()["image"][:1]
    scores = {}
    with torch.no_grad():
        for share in (0.0, 1.0):
            module.seen_exponent, module.unseen_exponent = share, share
            scores[share] = module(image, module.text_classifier(VOCABULARY)).class_scores
        module.seen_exponent, module.unseen_exponent = 0.0, 1.0
        known = replace(VOCABULARY, seen=(True,) * 4)
        unknown = replace(VOCABULARY, seen=(False,) * 4)
        assert torch.equal(module(image, module.text_classifier(known)).class_scores, scores[0.0])
        assert torch.equal(module(image, module.text_classifier(unknown)).class_scores, scores[1.0])
    assert not torch.allclose(scores[0.0], scores[1.0])


def test_evaluation_marks_what_training_saw() -> None:
    module = build()
    module.training_vocabulary = replace(VOCABULARY, seen=(True, False, True, True))
    words = Vocabulary.from_words(["Lawn", "horse", "dog", "sky"])
    assert module.with_seen(words).seen == (True, False, False, True)


def test_own_names_count_in_the_report_and_not_in_the_ensemble() -> None:
    module = build()
    module.training_vocabulary = Vocabulary.load("coco_panoptic_133")
    context = Vocabulary.load("pascal_context_59")
    words, road = module.words(context), context.classes.index("road")
    assert words.vocabulary.seen[road]
    assert not words.text.seen[road]
    assert sum(words.vocabulary.seen) == int(words.text.seen.sum()) + 1
    assert module.seen_by_synonyms(context) == tuple(words.text.seen.tolist())
    assert module.seen_by_synonyms(Vocabulary.load("pascal_voc_20")) is None, "where both rules agree"
    assert module.seen_by_synonyms(Vocabulary.load("coco_stuff_171", split="zero_shot_156_15")) is None


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("coco_panoptic_133", 133),
        ("ade20k_150", 64),
        ("ade20k_847", 101),
        ("pascal_context_59", 51),
        ("pascal_context_459", 85),
        ("pascal_voc_20", 20),
        ("cityscapes_19", 17),
        ("mapillary_vistas_65", 26),
    ],
)
def test_overlap_with_the_training_set_counts_as_published(name: str, seen: int) -> None:
    vocabulary = Vocabulary.load(name).with_seen_from(Vocabulary.load("coco_panoptic_133"))
    assert len(vocabulary.seen_indices) == seen


def test_the_best_synonym_speaks_for_its_class() -> None:
    network = build().network
    vectors = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    text = TextEmbeddings(vectors, torch.tensor([0, 1, 1, 1, 2]), 3)
    logits = merge_names(network.classify(4 * vectors[3][None, None], vectors, torch.tensor(10.0)), text)
    # The scale is at most 100 and the length of the embedding does not count.
    torch.testing.assert_close(logits[0, 0, 1], torch.tensor(100.0))
    assert logits.shape == (1, 1, 4)


def test_an_empty_mask_is_finite_under_both_poolings() -> None:
    for tower in (CONVNEXT, RESNET):
        module = build(tower)
        channels = 24 if tower is CONVNEXT else 256
        masks = torch.zeros(1, 2, 2, 3, dtype=torch.bool)
        masks[0, 1, 0, 0] = True
        embedded = module.tower.embed_masks(torch.randn(1, channels, 2, 3), masks)
        assert embedded.shape == (1, 2, 16)
        assert embedded.isfinite().all()


def test_pooling_reads_nothing_outside_the_mask() -> None:
    tower = build(CONVNEXT).tower
    features, masks = torch.randn(1, 24, 2, 3), torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    masks[0, 0, 1] = True
    before = tower.embed_masks(features, masks)
    features[:, :, 0] += 5
    assert torch.equal(tower.embed_masks(features, masks), before)


def test_padding_goes_to_the_bottom_and_right() -> None:
    padded = pad_to_multiple(torch.ones(1, 33, 64, dtype=torch.int64), 32, 255)
    assert padded.shape == (1, 64, 64)
    assert (padded[:, :33] == 1).all()
    assert (padded[:, 33:] == 255).all()


def test_a_vision_transformer_is_refused() -> None:
    with pytest.raises(InputError, match="convolutional"):
        build(VIT)


# Sizes of the released models: backbone channels, embedding size, and numbers of parameters.
@pytest.mark.parametrize(
    ("channels", "dimension", "pixel", "trainable"),
    [
        ((192, 384, 768, 1536), 768, 5_790_144, 20_721_601),
        ((256, 512, 1024, 2048), 1024, 6_035_904, 21_033_409),
        ((256, 512, 1024, 2048), 512, 6_035_904, 20_901_313),
        ((320, 640, 1280, 2560), 640, 6_281_664, 21_180_097),
        ((384, 768, 1536, 3072), 768, 6_527_424, 21_458_881),
        ((512, 1024, 2048, 4096), 1024, 7_018_944, 22_016_449),
    ],
)
def test_sizes_are_the_published_ones(channels: tuple[int, ...], dimension: int, pixel: int, trainable: int) -> None:
    with torch.device("meta"):
        network = FCCLIPNetwork(channels, dimension, FCCLIPSizes())
    assert sum(parameter.numel() for parameter in network.pixel_decoder.parameters()) == pixel
    assert sum(parameter.numel() for parameter in network.parameters()) == trainable


def test_the_published_model_is_the_default() -> None:
    with torch.device("meta"):
        module = FCCLIP(clip=CLIPSettings("convnext_large_d_320", "random"))
    assert sum(parameter.numel() for parameter in module.parameters()) == 372_494_210
    assert sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) == 20_721_601


def official_state(module: FCCLIP) -> dict[str, torch.Tensor]:
    """The module's weights under the official names, as a release would hold them."""
    network = dict(module.network.state_dict())
    layers = {
        "cross_attention": ("cross_attention", "multihead_attn"),
        "self_attention": ("self_attention", "self_attn"),
    }
    pixel, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    candidates = [f"{predictor}.logit_scale", "void_embedding.weight", f"{pixel}.transformer.level_embed"]
    candidates += [f"{predictor}.{n}.weight" for n in ("query_feat", "query_embed", "level_embed")]
    for kind in ("weight", "bias"):
        candidates += [f"{pixel}.input_proj.{i}.{j}.{kind}" for i in range(3) for j in range(2)]
        candidates += [f"{pixel}.{n}.{kind}" for n in ("mask_features", "adapter_1.norm", "layer_1.norm")]
        candidates += [f"{predictor}.{n}_embed.layers.{i}.{kind}" for n in ("mask", "class") for i in range(3)]
        candidates += [f"{predictor}._mask_pooling_proj.{i}.{kind}" for i in range(2)] + [
            f"{predictor}.decoder_norm.{kind}"
        ]
        parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        encoder = [*(f"self_attn.{p}" for p in parts), "linear1", "linear2", "norm1", "norm2"]
        candidates += [f"{pixel}.transformer.encoder.layers.0.{p}.{kind}" for p in encoder]
        for i in range(2):
            for name, (layer, attention) in layers.items():
                prefix = f"{predictor}.transformer_{layer}_layers.{i}"
                candidates += [f"{prefix}.{attention}.in_proj_{kind}", f"{prefix}.{attention}.out_proj.{kind}"]
                candidates += [f"{prefix}.norm.{kind}"] if name else []
            candidates += [f"{predictor}.transformer_ffn_layers.{i}.{p}.{kind}" for p in ("linear1", "linear2", "norm")]
    candidates += [f"{pixel}.adapter_1.weight", f"{pixel}.layer_1.weight"]
    ours = rename({key: torch.empty(0) for key in candidates})
    state = {key: network[name.removeprefix("network.")].clone() for key, name in zip(candidates, ours, strict=True)}
    assert len(state) == len(candidates) == len(network)
    state |= {f"backbone.clip_model.{key}": value.clone() for key, value in module.clip.model.state_dict().items()}
    return state | {"criterion.empty_weight": torch.tensor([1.0, 0.1])}


def test_official_weights_go_in_and_nothing_is_dropped() -> None:
    source, target = build(), build()
    for parameter in (*source.network.parameters(), *source.clip.parameters()):
        torch.nn.init.normal_(parameter)
    state = official_state(source)
    convert_official(state, target)
    for part in ("network", "clip"):
        loaded = getattr(target, part).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in getattr(source, part).state_dict().items())
    assert "criterion.empty_weight" not in rename(state)


def test_official_weights_that_do_not_fit_are_refused() -> None:
    module = build()
    state = official_state(module)
    missing = "sem_seg_head.predictor.decoder_norm.weight"
    with pytest.raises(InputError, match=r"mask_decoder\.norm\.weight"):
        convert_official({key: value for key, value in state.items() if key != missing}, module)
    with pytest.raises(InputError, match=r"sem_seg_head\.predictor\.surprise"):
        convert_official(state | {"sem_seg_head.predictor.surprise": torch.zeros(1)}, module)
    with pytest.raises(InputError, match=r"1 \(.*\) of another shape"):
        convert_official(state | {"void_embedding.weight": torch.zeros(1, 3)}, module)


def test_released_files_may_lack_the_text_tower_but_not_stand_on_another_clip() -> None:
    module = build()
    image_only = {k: v for k, v in official_state(module).items() if "clip_model" not in k or ".visual." in k}
    # On random CLIP weights nothing could fill the gap.
    with pytest.raises(InputError, match=r"token_embedding|positional_embedding|ln_final"):
        convert_official(image_only, module)
    module.clip.pretrained = "weights.pt"
    convert_official(image_only, module)
    with pytest.raises(InputError, match="another CLIP"):
        convert_official(image_only | {f"{CLIP_PREFIX}visual.trunk.stem.0.weight": torch.ones(8, 3, 4, 4)}, module)


def test_published_checkpoints_are_recognised() -> None:
    state = {
        f"{CLIP_PREFIX}visual.layer1.0.conv3.weight": torch.zeros(256, 64, 1, 1),
        "void_embedding.weight": torch.zeros(1, 512),
        "sem_seg_head.predictor.query_feat.weight": torch.zeros(250, 256),
    }
    found = settings(state)
    assert found["init_args"]["clip"] == {"model": "RN101", "pretrained": "openai"}
    assert found["init_args"]["ensemble_on_valid_masks"]
    assert found["vocabulary"] == "coco_panoptic_133"
    with pytest.raises(InputError, match="none of the published"):
        settings(state | {"void_embedding.weight": torch.zeros(1, 16)})


def test_the_clip_is_registered_once() -> None:
    module = build()
    assert sum(isinstance(part, FrozenCLIP) for part in module.modules()) == 1
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    assert not [name for name in names if name.startswith("network.") and "visual" in name]
