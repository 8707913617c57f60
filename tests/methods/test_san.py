import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.errors import InputError
from ovsl.inference import WholeImage
from ovsl.methods.san import SAN, SANSizes
from ovsl.methods.san.official import DROPPED, NAMES, convert, settings
from ovsl.methods.san.recognition import recognize, recognize_literally
from ovsl.runs.record import saved_state
from ovsl.vocabulary import Vocabulary

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 5, "width": 24, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408},
    "quick_gelu": True,
}
SIZES = SANSizes(
    num_shallow_blocks=3, fusion={0: 0, 1: 2, 2: 3}, width=12, num_layers=3, num_heads=2, patch_size=8, image_size=64,
    num_queries=5, hidden_width=10, embedding_dimension=14,
)  # fmt: skip
LARGE = SANSizes(num_shallow_blocks=18, fusion={0: 0, 1: 6, 2: 12, 3: 18})
PUBLISHED = {"ViT-B-16": (SANSizes(), 0.5), "ViT-L-14-336": (LARGE, 0.7)}
WORDS = replace(Vocabulary.from_words(["cat", "sky", "grass", "river"]), seen=(True, False, True, True))


def build(clip=CLIP, **options):
    torch.manual_seed(0)
    sizes = replace(SIZES, **{name: options.pop(name) for name in list(options) if hasattr(SIZES, name)})
    options = {"supervised_blocks": (1, 2, 3), "num_points": 64} | options
    module = SAN(CLIPSettings("tiny", config=clip), sizes, **options)
    module.training_vocabulary = WORDS
    return module


@pytest.fixture
def module():
    return build()


def batch(size=(64, 64), count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8),
        "semantic": torch.randint(0, 4, (count, size[0] // 16, size[1] // 16), generator=generator)
        .repeat_interleave(16, 1)
        .repeat_interleave(16, 2),
        "id": [str(i) for i in range(count)],
    }


def text(num_classes=4):
    vectors = torch.nn.functional.normalize(torch.randn(num_classes, 16), dim=1)
    return TextEmbeddings(vectors, torch.arange(num_classes), num_classes)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_shared_recognition_equals_the_literal_form(heads, layers):
    """Three levels at once, without what is cut, against one complete matrix for each level; gradients too."""
    tower = build(clip=CLIP).tower
    tokens = torch.randn(2, 1 + 12, 24, dtype=torch.float64)
    biases = [3 * torch.randn(layers, 2, heads, 4, 12, dtype=torch.float64) for _ in range(3)]
    tower.visual.double()
    results = []
    for form in ("shared", "literal"):
        inputs = [tensor.clone().requires_grad_() for tensor in (tokens, *biases)]
        if form == "shared":
            embeddings = recognize(tower, inputs[0], torch.cat(inputs[1:], dim=3), 3)
        else:
            embeddings = torch.cat([recognize_literally(tower, inputs[0], bias, 3) for bias in inputs[1:]], dim=1)
        weights = torch.arange(embeddings.numel(), dtype=torch.float64).cos().view_as(embeddings)
        results.append((embeddings, torch.autograd.grad((embeddings * weights).sum(), inputs)))
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("options", [{}, {"bias_heads": 1}, {"bias_layers": 2}, {"rescale_bias": False}])
def test_folded_biases_equal_the_literal_form(options):
    """The last layer of the bias MLP on the queries' side of the product; gradients too."""
    decoder = build(**options).network.mask_decoder.double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(2, 5 + 3 * 4, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for literal in (True, False):
        masks, biases = decoder(tokens, (3, 4), literal)
        total = (biases * torch.arange(biases.numel()).cos().view_as(biases)).sum() + masks.square().sum()
        gradients = torch.autograd.grad(total, [tokens, *decoder.parameters()])
        results.append((masks, biases, gradients))
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("recognition", ["shared", "literal"])
def test_recomputed_activations_give_the_same_gradients(recognition):
    results = []
    for again in (False, True):
        module = build(recognition=recognition, checkpoint_activations=again)
        kept = []
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            total = torch.stack(list(module.losses(batch()).weighted.values())).sum()
        total.backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        results.append((total, gradients, sum(kept)))
    torch.testing.assert_close(results[0][:2], results[1][:2], atol=1e-6, rtol=1e-5)
    assert results[1][2] < 0.8 * results[0][2]


@pytest.mark.parametrize("options", [{"bias_heads": 1}, {"bias_layers": 2}, {"rescale_bias": False}])
def test_decoder_options_train_all_that_they_have(options):
    module = build(**options)
    losses = module.losses(batch()).weighted
    assert len(losses) == 9
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


def test_only_the_side_and_the_position_embedding_train(module):
    trained = {name for name, p in module.named_parameters() if p.requires_grad and not name.startswith("network.")}
    assert trained == {"no_object_embedding", "clip.model.visual.positional_embedding"}
    before = {name: tensor.clone() for name, tensor in module.clip.state_dict().items()}
    optimizer = torch.optim.AdamW(list(module.parameter_groups(1.0)), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        sum(module.losses(batch(seed=step)).weighted.values()).backward()
        optimizer.step()
    changed = {name for name, tensor in module.clip.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"model.visual.positional_embedding"}
    stored = {name for name in saved_state(module, module.state_dict()) if name.startswith("clip.")}
    assert stored == {"clip.model.visual.positional_embedding"}


def test_labels_of_unseen_classes_do_not_reach_the_loss(module):
    """Pixels of the unseen class "sky" give the same loss as ignored pixels."""
    data = batch()
    hidden = {**data, "semantic": data["semantic"].masked_fill(data["semantic"] == 1, WORDS.ignore_index)}
    losses = []
    for one in (data, hidden):
        torch.manual_seed(3)
        losses.append(torch.stack(list(module.losses(one).weighted.values())))
    assert (data["semantic"] == 1).any()
    assert torch.equal(*losses)


def test_the_no_object_row_is_current_while_the_classes_stay_cached(module):
    first = module.text_rows(module.training_classes.text())
    with torch.no_grad():
        module.no_object_embedding.add_(1)
    second = module.text_rows(module.training_classes.text())
    assert torch.equal(first[:-1], second[:-1])
    assert not torch.allclose(first[-1], second[-1])
    assert module.training_classes.text().vectors is module.training_classes.text().vectors


def test_padding_is_cut_from_the_labels(module):
    """An image whose size 32 does not divide gives what the same image, padded by hand, gives inside."""
    module.eval()
    image, embeddings = batch((50, 71), 1)["image"], text()
    with torch.no_grad():
        prediction = module(image, embeddings)
        assert prediction.padded_size == (64, 96)
        labels = WholeImage().labels(lambda images: module(images, embeddings), image, (50, 71))
        padded = torch.nn.functional.pad(module.clip.normalize(image), (0, 25, 0, 14))
        whole = module.predict_masks(padded, embeddings).semantic_scores((64, 96)).argmax(1)
    assert torch.equal(labels, whole[:, :50, :71])


def test_the_network_compiles_as_one_graph(module):
    module.eval()
    compiled = torch.compile(module.network, backend="eager", fullgraph=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, plain = compiled(images, text().vectors), module.network(images, text().vectors)
    assert torch.equal(ours.mask_embeddings, plain.mask_embeddings)


def test_two_groups_of_which_one_does_not_decay(module):
    names = {id(p): name for name, p in module.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in module.parameter_groups(1.0))
    assert free == {name for name in names.values() if re.search(r"blocks\.\d\.norm|network.*_embedding$", name)
                    and not name.startswith("clip.")} | {"clip.model.visual.positional_embedding"}  # fmt: skip
    assert {"no_object_embedding", "network.mask_decoder.bias_scaling.bias"} < decayed
    assert any("fusions.0.norm" in name for name in decayed)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_shallow_blocks": 5}, "num_shallow_blocks"),
        ({"bias_heads": 2}, "bias_heads"),
        ({"bias_layers": 3}, "bias_layers"),
        ({"fusion": {4: 0}}, "fusion"),
        ({"supervised_blocks": (3, 4)}, "supervised_blocks"),
    ],
)
def test_impossible_sizes_are_named(options, named):
    with pytest.raises(InputError, match=named):
        build(**options)


@pytest.mark.parametrize(
    ("name", "trainable", "total", "giga_macs"),
    [("ViT-B-16", 8_370_866, 157_840_307, (63.25, 90.4)), ("ViT-L-14-336", 9_321_650, 436_674_995, (396.8, 558.8))],
)
def test_published_sizes(name, trainable, total, giga_macs):
    sizes, clip_scale = PUBLISHED[name]
    with torch.device("meta"), torch.no_grad():
        module = SAN(CLIPSettings(name, "random", quick_gelu=True), sizes, clip_scale, recognition="literal").eval()
        no_words = torch.empty(0, module.clip.embedding_dimension)
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == trainable
        assert sum(p.numel() for p in module.parameters()) == total
        for size, published in zip(((640, 640), (640, 864)), giga_macs, strict=True):
            with FlopCounterMode(display=False) as counter:
                module.network(torch.empty(1, 3, *size), no_words)
            assert round(counter.get_total_flops() / 2e9, 2 if published < 90 else 1) == published
            # The shared form does less for the same result.
            module.network.recognition = "shared"
            with FlopCounterMode(display=False) as cheaper:
                module.network(torch.empty(1, 3, *size), no_words)
            assert cheaper.get_total_flops() < 0.97 * counter.get_total_flops()
            module.network.recognition = "literal"


@pytest.mark.parametrize("side_width", [144, 192, 288])
def test_sizes_of_the_other_widths(side_width):
    published = {144: (4_206_290, 5_058_770), 192: (6_067_394, 6_969_026), 288: (11_116_706, 12_116_642)}
    for (name, (sizes, _)), count in zip(PUBLISHED.items(), published[side_width], strict=True):
        with torch.device("meta"):
            module = SAN(CLIPSettings(name, "random", quick_gelu=True), replace(sizes, width=side_width))
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count


def official_names(module):
    """The module's weights as a released file holds them, written down independently of the map."""
    shallow, found = module.network.num_shallow_blocks, {}
    mlps = {"query": "query", "pixel": "pix", "bias": "attn"}
    for name, parameter in module.named_parameters():
        tensor = parameter.detach().clone()
        name = re.sub(r"^clip\.model\.visual\.transformer\.resblocks\.(\d+)", lambda m: (
            f"clip_visual_extractor.resblocks.{m[1]}" if int(m[1]) < shallow
            else f"clip_rec_head.resblocks.{int(m[1]) - shallow}"), name)  # fmt: skip
        name = re.sub(r"^clip\.model\.visual\.(ln_post|proj)", r"clip_rec_head.\1", name)
        name = name.replace("clip.model.visual.", "clip_visual_extractor.").replace("clip.model.", "ov_classifier.")
        name = re.sub(r"(query|pixel|bias)_mlp\.(\d+)", lambda m: (
            f"{mlps[m[1]]}_mlp.layers.{int(m[2]) // 2}"), name)  # fmt: skip
        name = re.sub(r"fusions\.(\d)\.(norm|projection)", lambda m: (
            f"fusion_layers.layer_{m[1]}.input_proj.{int(m[2] == 'projection')}"), name)  # fmt: skip
        name = name.replace("no_object_embedding", "ov_classifier.bg_embed")
        name = name.replace("network.side_network.", "side_adapter_network.")
        name = name.replace("network.mask_decoder.", "side_adapter_network.mask_decoder.")
        if name.startswith("side_adapter_network."):
            for ours, theirs in (("query_embedding", "query_embed"), ("query_position_embedding", "query_pos_embed"),
                                 ("position_embedding", "vit_model.pos_embed"), ("blocks.", "vit_model.blocks."),
                                 ("patch_embedding.", "vit_model.patch_embed.proj.")):  # fmt: skip
                name = re.sub(rf"^(side_adapter_network\.){re.escape(ours)}", rf"\g<1>{theirs}", name)
            if re.search(r"(pix|attn)_mlp.*weight|input_proj\.1\.weight", name):
                tensor = tensor[:, :, None, None]
        found[name] = tensor
    return found | {"ov_classifier.attn_mask": torch.zeros(77, 77), "criterion.empty_weight": torch.ones(172)}


@pytest.mark.parametrize(("name", "count"), [("ViT-B-16", 442), ("ViT-L-14-336", 586)])
def test_released_files_map_onto_the_published_models(name, count):
    with torch.device("meta"):
        module = SAN(CLIPSettings(name, "random", quick_gelu=True), PUBLISHED[name][0])
        official = official_names(module)
    assert len(official) == count
    convert(official, module)  # every name and shape fits
    patterns = {*DROPPED, *(old for old, _ in NAMES)}
    assert {old for old in patterns for key in official if re.fullmatch(old, key)} == patterns


def test_convert_compares_the_frozen_clip_with_a_pretrained_one(module):
    official = official_names(module)
    official = {n: t + 1 if n.startswith("side_") or "bg_embed" in n else t for n, t in official.items()}
    official["clip_visual_extractor.positional_embedding"] += 1
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.clip.pretrained = "a tag"
    convert(official, module)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + 1 if parameter.requires_grad else before[name])

    other = official | {"clip_rec_head.proj": official["clip_rec_head.proj"] + 1}
    with pytest.raises(InputError, match=r"another CLIP.*clip\.model\.visual\.proj"):
        convert(other, module)
    module.clip.pretrained = None
    convert(other, module)
    assert torch.equal(module.tower.visual.proj, other["clip_rec_head.proj"])


def test_convert_refuses_what_does_not_fit(module):
    official = official_names(module)
    with pytest.raises(InputError, match=r"1 \(network\.side_network\.query_embedding\) missing"):
        convert({n: t for n, t in official.items() if not n.endswith("query_embed")}, module)
    with pytest.raises(InputError, match=r"decode_head\.bias"):
        convert(official | {"decode_head.bias": torch.zeros(1)}, module)
    with pytest.raises(InputError, match="of another shape"):
        convert(official, build(num_queries=7))


def test_settings_of_the_released_files_are_read_off_their_tensors():
    for name, (sizes, clip_scale) in PUBLISHED.items():
        with torch.device("meta"):
            official = official_names(SAN(CLIPSettings(name, "random", quick_gelu=True), sizes))
        found = settings(official)
        assert found["init_args"]["clip"] == {"model": name, "pretrained": "openai"}
        assert SANSizes(**found["init_args"]["sizes"]) == sizes
        assert found["init_args"]["clip_scale"] == clip_scale
    with pytest.raises(InputError, match="none of the published"):
        settings(official_names(build()))
