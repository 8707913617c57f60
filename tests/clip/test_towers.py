import open_clip
import pytest
import torch

from ovsl.clip import (
    ConvNeXtTower,
    ConvTower,
    FrozenCLIP,
    ImageTower,
    ResNetTower,
    TextClassifier,
    ViTTower,
    build_clip,
    build_network,
)
from ovsl.clip.blocks import run_value_block
from ovsl.clip.image_tower import open_tower
from ovsl.errors import InputError
from ovsl.vocabulary import ClassNames, Vocabulary
from tests.conftest import TINY_CLIP


def test_dense_attention_features_are_those_of_open_clip(tiny_clip):
    tiny_clip.eval()
    images = torch.rand(2, 3, 32, 32)
    tower = tiny_clip.require_tower(ViTTower, "the test")
    visual = tower.visual
    visual.output_tokens = True
    visual.final_ln_after_pool = False
    _, tokens = visual(images)
    expected = (tokens @ visual.proj).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(tower.dense_features(images, "attention"), expected)


def test_value_path_ignores_what_other_patches_hold_in_the_last_block(tiny_clip):
    block = tiny_clip.model.visual.transformer.resblocks[-1]
    tokens = torch.randn(1, 17, 32)
    changed = tokens.clone()
    changed[:, 5] += 1
    before, after = run_value_block(block, tokens), run_value_block(block, changed)
    same = torch.ones(17, dtype=torch.bool)
    same[5] = False
    assert torch.equal(before[:, same], after[:, same])
    assert not torch.equal(before[:, 5], after[:, 5])


@pytest.mark.parametrize("name", ["RN50", "convnext_base"])
def test_stage_features_follow_the_tower_of_open_clip(name):
    config = open_clip.get_model_config(name)
    if name == "RN50":
        config["vision_cfg"].update(layers=[1, 1, 1, 1], width=16, image_size=64)
    else:
        config["vision_cfg"]["convnext"] = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    config["text_cfg"].update(width=16, heads=2, layers=1)
    config["embed_dim"] = 16
    visual = build_network(config).eval().visual
    tower = open_tower(visual)
    assert isinstance(tower, ConvTower)
    images = torch.rand(1, 3, 64, 96)
    features = tower.stage_features(images)
    assert [tuple(features[f"res{n}"].shape[2:]) for n in range(2, 6)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    if name == "RN50":
        stem = visual.stem(images)
        expected = visual.layer4(visual.layer3(visual.layer2(visual.layer1(stem))))
        torch.testing.assert_close(features["res5"], expected)
    else:
        torch.testing.assert_close(features["res5"], visual.trunk.forward_features(images))
        # On a map of a single cell the projection is CLIP's own image embedding.
        cell = features["res5"][:, :, :1, :1]
        expected = visual.head(visual.trunk.forward_head(cell))
        torch.testing.assert_close(tower.project_map(features["res5"])[:, :, 0, 0], expected)


def test_the_stem_is_that_of_open_clip(tiny_clip):
    tower, images = tiny_clip.require_tower(ViTTower, "the test"), torch.rand(2, 3, 32, 32)
    expected, sizes = tower.visual._embeds(images), (tower.width, tower.patch_size, tower.num_layers, tower.num_heads)
    tokens, grid = tower.stem(images)
    torch.testing.assert_close(tokens, expected)
    assert (grid, tower.grid, sizes) == ((4, 4), (4, 4), (32, 8, 2, 2))
    given, _ = tower.stem(images, positions=tower.visual.positional_embedding)
    assert torch.equal(given, tokens)
    repeated, _ = tower.stem(images, repeat_class_embedding=True)
    assert torch.equal(repeated[:, 1:], tokens[:, 1:])
    assert not torch.allclose(repeated[:, 0], tokens[:, 0])


TINY_RESNET = {**TINY_CLIP, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}}


def test_a_tower_is_asked_for_by_its_kind(tiny_clip):
    resnet, convnext = build_clip("resnet", config=TINY_RESNET), build_clip("toy_convnext")
    kinds = [type(clip.require_tower(ImageTower, "MaskCLIP")) for clip in (tiny_clip, resnet, convnext)]
    assert kinds == [ViTTower, ResNetTower, ConvNeXtTower]
    with pytest.raises(InputError, match="SAN needs a CLIP with a vision transformer and a class token; 'resnet' has"):
        resnet.require_tower(ViTTower, "SAN")
    with pytest.raises(InputError, match="FCCLIP needs a CLIP with a convolutional image tower; 'tiny' has none"):
        tiny_clip.require_tower(ConvTower, "FCCLIP")


def test_towers_that_nobody_opened_are_refused_by_name():
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    clip = build_clip("siglip", config={**TINY_CLIP, "vision_cfg": vision})
    assert clip.image_tower is None
    with pytest.raises(InputError, match=r"MaskCLIP needs a CLIP with an image tower .*; 'siglip' has none"):
        clip.require_tower(ImageTower, "MaskCLIP")


@pytest.mark.parametrize("use", ["trained", "unused"])
def test_a_tower_that_is_not_frozen_is_no_part_of_the_clip(use):
    torch.manual_seed(0)
    whole = build_clip("tiny", config=TINY_CLIP)
    torch.manual_seed(0)
    clip = build_clip("tiny", config=TINY_CLIP, image_tower=use)
    assert clip.image_tower is None
    # Text weights do not depend on the use, also when they are random: checkpoints name them by their hash.
    state = {name: value for name, value in whole.model.state_dict().items() if not name.startswith("visual.")}
    assert clip.model.state_dict().keys() == state.keys()
    assert all(torch.equal(clip.model.state_dict()[name], value) for name, value in state.items())
    tower = clip.take_image_tower()
    if use == "unused":
        assert tower is None
        return
    assert isinstance(tower, ViTTower)
    assert torch.equal(tower.visual.proj, whole.model.visual.proj)
    assert tower.visual.training
    assert all(parameter.requires_grad for parameter in tower.visual.parameters())
    assert clip.take_image_tower() is None, "there is one tower, and one owner"


def test_towers_add_no_names(tiny_clip):
    assert all(name.startswith("model.") for name in tiny_clip.state_dict())
    tiny_clip.require_tower(ViTTower, "SAN")
    assert [name for name, _ in tiny_clip.named_children()] == ["model", "normalize"]


def test_freezing_is_by_name_and_frozen_parts_stay_in_evaluation_mode(tiny_clip):
    assert not any(p.requires_grad for p in tiny_clip.parameters())
    tiny_clip.freeze(["visual.positional_embedding"])
    assert [n for n, p in tiny_clip.model.named_parameters() if p.requires_grad] == ["visual.positional_embedding"]
    tiny_clip.train()
    assert not tiny_clip.model.visual.transformer.training
    with pytest.raises(InputError, match="'positionel'"):
        tiny_clip.freeze(["positionel"])


def test_identity_is_that_of_the_frozen_weights(tiny_clip):
    tiny_clip.freeze(["visual."])
    before = tiny_clip.sha256
    with torch.no_grad():
        tiny_clip.model.visual.proj.add_(1)
    tiny_clip.freeze(["visual."])
    assert tiny_clip.sha256 == before, "a trained weight is not part of what the checkpoint leaves out"
    with torch.no_grad():
        tiny_clip.model.text_projection.add_(1)
    tiny_clip.freeze(["visual."])
    assert tiny_clip.sha256 != before


def test_statistics_go_with_the_layer_that_trains():
    config = {**TINY_CLIP, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}}
    clip = build_clip("resnet", config=config)
    assert clip.frozen_names() == set(clip.model.state_dict())
    clip.freeze(["visual.layer1"])
    trained = set(clip.model.state_dict()) - clip.frozen_names()
    assert "visual.layer1.0.bn1.running_mean" in trained
    assert all(name.startswith("visual.layer1") for name in trained)


def test_a_tag_decides_the_activation(monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: pytest.fail("must not download"))
    with pytest.raises(InputError, match="quick_gelu=True"):
        build_clip("ViT-B-16", "openai", quick_gelu=False)
    with pytest.raises(InputError, match="nor a pretrained tag of 'ViT-B-16-quickgelu'"):
        build_clip("ViT-B-16-quickgelu", "laion2b_s34b_b88k")


def test_openai_weights_run_with_quick_gelu_under_the_plain_name(monkeypatch, tmp_path):
    small = {**TINY_CLIP}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(small))
    weights = tmp_path / "weights.pt"
    torch.manual_seed(1)
    torch.save(build_network(small).state_dict(), weights)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(weights))
    clip = build_clip("ViT-B-16", "openai")
    block = clip.model.visual.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == "QuickGELU"
    exact = build_clip("ViT-B-16", "laion2b_s34b_b88k")
    assert type(exact.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"


def test_a_weights_file_needs_its_activation_said(tmp_path):
    weights = tmp_path / "clip.pt"
    torch.save({"visual.proj": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="quick_gelu: true"):
        build_clip("ViT-B-16", str(weights))
    with pytest.raises(InputError, match="do not fit CLIP model 'tiny'"):
        build_clip("tiny", str(weights), quick_gelu=False, config=TINY_CLIP)


def test_weights_file_is_loaded(tmp_path):
    torch.manual_seed(3)
    network = build_network(TINY_CLIP)
    weights = tmp_path / "clip.pt"
    torch.save(network.state_dict(), weights)
    clip = build_clip("tiny", str(weights), quick_gelu=False, config=TINY_CLIP)
    assert torch.equal(clip.model.visual.proj, network.visual.proj)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-17", None, "Unknown CLIP model 'ViT-B-17', did you mean 'ViT-B-1"),
        ("ViT-B-16", "opanai", "tags: openai"),
        ("ViT-B-16", None, "one of openai, .*, random"),
    ],
)
def test_unknown_names_say_what_there_is(model, pretrained, message):
    with pytest.raises(InputError, match=message):
        build_clip(model, pretrained)


def test_a_random_clip_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(TINY_CLIP))
    with pytest.raises(InputError, match="has no weights"):
        build_clip("ViT-B-16")
    assert build_clip("ViT-B-16", "random").pretrained is None
    monkeypatch.undo()
    # A network of one's own has no released weights that could have been meant.
    assert build_clip("mine", config=TINY_CLIP).pretrained is None
    assert build_clip("mine", "random", config=TINY_CLIP).pretrained is None


@pytest.mark.parametrize("model", ["ViT-B-16", "toy_vit"])
def test_a_released_clip_has_no_configuration_of_ones_own(model):
    with pytest.raises(InputError, match="leave `config` out"):
        build_clip(model, "openai", config=TINY_CLIP)


def test_unreachable_weights_are_one_clear_error(monkeypatch):
    def refuse(tag):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(InputError, match=r"not in the local cache.*give a local file"):
        build_clip("ViT-B-32", "laion2b_s34b_b79k")


def _expected_vectors(clip: FrozenCLIP, names: list[str], templates: tuple[str, ...]) -> torch.Tensor:
    rows = []
    for name in names:
        raw = clip.encode_text(clip.tokenize([t.format(name) for t in templates]))
        mean = (raw / raw.norm(dim=1, keepdim=True)).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def test_text_embeddings_average_templates_and_merge_synonyms(tiny_clip):
    vocabulary = Vocabulary.from_words(["cat", "sofa, couch", "lamp"])
    first = TextClassifier(tiny_clip, "vild_14", "first")
    torch.testing.assert_close(
        first(vocabulary).vectors, _expected_vectors(tiny_clip, ["cat", "sofa", "lamp"], first.templates)
    )
    best = TextClassifier(tiny_clip, "vild_14", "max")(vocabulary)
    assert best.class_index.tolist() == [0, 1, 1, 2]
    rows = _expected_vectors(tiny_clip, ["cat", "sofa", "couch", "lamp"], first.templates)
    torch.testing.assert_close(best.vectors, rows)
    scores = torch.tensor([[0.1, 0.2, 0.7, -3.0]])
    assert best.per_class(scores).tolist() == torch.tensor([[0.1, 0.7, -3.0]]).tolist()
    shown = TextClassifier(tiny_clip, "vild_14", "max", ClassNames({"sofa": "lamp"}))(vocabulary).vectors
    torch.testing.assert_close(shown, rows[[0, 3, 3]])
    several = TextClassifier(tiny_clip, "vild_14", "first", ClassNames({"lamp": ["sofa", "couch"]}))(vocabulary)
    torch.testing.assert_close(several.vectors, rows[[0, 1, 1, 2]])
    assert several.class_index.tolist() == [0, 1, 2, 2]
    mean = TextClassifier(tiny_clip, "vild_14", "mean")(vocabulary).vectors[1]
    torch.testing.assert_close(mean, torch.nn.functional.normalize(rows[1] + rows[2], dim=0))


def test_text_is_embedded_once_and_fits_into_training(tiny_clip, monkeypatch):
    classifier = TextClassifier(tiny_clip, "single")
    vocabulary = Vocabulary.from_words(["cat", "dog"])
    with torch.inference_mode():
        first = classifier(vocabulary)
    monkeypatch.setattr(tiny_clip, "encode_text", lambda tokens: pytest.fail("encoded again"))
    assert classifier(vocabulary) is first
    weight = torch.nn.Parameter(torch.ones(16))
    (first.vectors * weight).sum().backward()
    assert weight.grad is not None


def test_words_that_a_small_text_tower_never_read_are_refused(tiny_clip):
    known = frozenset(tiny_clip.tokenize(["a photo of a red circle."]).unique().tolist())
    small = FrozenCLIP(tiny_clip.model, "small", known_tokens=known)
    small.tokenize(["a red circle"])
    with pytest.raises(InputError, match="never read 'submarine'"):
        small.tokenize(["a red submarine"])
