from dataclasses import replace

import pytest
import torch

from ovsl.errors import InputError
from ovsl.inference import SlidingWindow, WholeImage
from ovsl.methods import MaskCLIP, PatchText
from ovsl.methods.schedules import MultiStepSchedule, PolynomialSchedule
from ovsl.vocabulary import Vocabulary
from tests.conftest import TINY_CLIP


@pytest.fixture
def words() -> Vocabulary:
    return replace(Vocabulary.from_words(["cat", "dog", "sky", "road"]), seen=(True, False, True, True))


@pytest.fixture
def baseline(tiny_settings, words) -> PatchText:
    torch.manual_seed(0)
    module = PatchText(clip=tiny_settings, templates="single")
    module.training_vocabulary = words
    return module


def _batch(semantic: torch.Tensor) -> dict:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (len(semantic), 3, 32, 32), dtype=torch.uint8)
    return {"image": images, "semantic": semantic, "id": ["a"] * len(semantic)}


def test_targets_are_ranks_of_seen_classes(baseline):
    semantic = torch.tensor([[[0, 1, 2, 3, 255]]])
    assert baseline.training_classes.targets(semantic).tolist() == [[[0, 255, 1, 2, 255]]]
    assert baseline.training_classes.text().vectors.shape == (3, 16)


def test_labels_of_unseen_classes_do_not_reach_the_loss(baseline):
    semantic = torch.randint(0, 4, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    hidden = torch.where(semantic == 1, 255, semantic)
    first = baseline.losses(_batch(semantic)).weighted["cross_entropy"]
    assert torch.equal(first, baseline.losses(_batch(hidden)).weighted["cross_entropy"])
    other = torch.where(semantic == 2, 255, semantic)
    assert not torch.equal(first, baseline.losses(_batch(other)).weighted["cross_entropy"])


def test_a_batch_without_labels_gives_zero_and_not_nan(baseline):
    loss = baseline.losses(_batch(torch.full((1, 32, 32), 255))).weighted["cross_entropy"]
    loss.backward()
    assert loss.item() == 0


def test_frozen_weights_stay_bit_identical(baseline):
    frozen = {n: p.clone() for n, p in baseline.named_parameters() if not p.requires_grad}
    trained = {n: p.clone() for n, p in baseline.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(list(baseline.parameter_groups(1.0)), lr=1e-2)
    for _ in range(2):
        sum(baseline.losses(_batch(torch.zeros(1, 32, 32, dtype=torch.int64))).weighted.values()).backward()
        optimizer.step()
    now = dict(baseline.named_parameters())
    assert frozen
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())
    changed = [name for name, value in trained.items() if not torch.equal(value, now[name])]
    assert "clip.model.visual.proj" in changed


def test_norms_and_biases_do_not_decay(baseline):
    weights, rest = baseline.parameter_groups(1.0)
    assert rest["weight_decay"] == 0
    count = sum(p.requires_grad for p in baseline.parameters())
    assert len(weights["params"]) + len(rest["params"]) == count
    assert all(p.ndim > 1 for p in weights["params"])


def test_checkpoint_holds_what_trains_and_names_the_rest(baseline):
    checkpoint = {"state_dict": baseline.state_dict(), "global_step": 7}
    baseline.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"]
    assert all(key.startswith("clip.model.visual.") for key in checkpoint["state_dict"])
    assert checkpoint["ovsl"]["clip"] == {"model": "tiny", "pretrained": None, "sha256": baseline.clip.sha256}
    baseline.training_vocabulary = None
    baseline.on_load_checkpoint(checkpoint)
    assert baseline.training_classes.seen.classes == ("cat", "sky", "road")
    assert baseline.trained_steps == 7


def test_checkpoints_that_do_not_belong_are_refused(baseline, tiny_settings):
    checkpoint = {"state_dict": baseline.state_dict(), "global_step": 7}
    baseline.on_save_checkpoint(checkpoint)
    with pytest.raises(InputError, match="holds PatchText, but the configuration asks for MaskCLIP"):
        MaskCLIP(clip=tiny_settings).on_load_checkpoint(checkpoint)
    torch.manual_seed(5)
    other = PatchText(clip=tiny_settings)
    with pytest.raises(InputError, match="random CLIP 'tiny' of another seed"):
        other.on_load_checkpoint(checkpoint)
    incomplete = {**checkpoint, "state_dict": dict(list(checkpoint["state_dict"].items())[1:])}
    with pytest.raises(InputError, match="1 weights missing, 0 unexpected"):
        baseline.on_load_checkpoint(incomplete)
    with pytest.raises(InputError, match="not written by ovsl"):
        baseline.on_load_checkpoint({"state_dict": {}})


def test_images_of_several_sizes_in_one_batch_get_their_own_maps(tiny_settings):
    module = MaskCLIP(clip=tiny_settings, templates="single", inference=SlidingWindow(32, 24)).eval()
    vocabulary = Vocabulary.from_words(["cat", "dog", "sky"])
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in [(40, 48), (32, 64), (40, 48)]]
    sizes = [(40, 48), (30, 60), (40, 48)]
    with torch.no_grad():
        segmenter = module.segmenter(vocabulary)
        together = segmenter(images, sizes)
        alone = [segmenter([image], [size])[0] for image, size in zip(images, sizes, strict=True)]
    assert [tuple(found.labels.shape) for found in together] == sizes
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(together, alone, strict=True))


def test_seen_classes_of_an_evaluation_set(baseline):
    pets = Vocabulary.from_words(["dog", "cat, kitten", "boat"])
    split = replace(Vocabulary.from_words(["dog", "cat"]), seen=(True, False))
    overlap, explicit = (baseline.segmenter(vocabulary).vocabulary for vocabulary in (pets, split))
    assert overlap.seen == (False, True, False), "by overlap with the classes that were seen in training"
    assert explicit.seen == (True, False), "an explicit split stands"


def test_patch_text_needs_a_transformer():
    config = {**TINY_CLIP, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}}
    from ovsl.clip import CLIPSettings

    with pytest.raises(InputError, match="'resnet' has none"):
        PatchText(clip=CLIPSettings("resnet", config=config))


def test_polynomial_schedule_with_warm_up():
    # Values of the published ZegCLIP schedule over 20000 steps.
    schedule = PolynomialSchedule(power=0.9, minimum=1e-6, warmup_steps=1500, warmup_ratio=1e-6)
    rates = [schedule.learning_rate(2e-4, step, 20000) for step in (0, 1, 750, 1499, 1500, 10000, 19999)]
    expected = [2.0e-10, 1.335272e-7, 9.663559e-5, 1.864004e-4, 1.865157e-4, 1.076415e-4, 1.026787e-6]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_schedule_keeps_the_ratio_of_the_groups():
    groups = [{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    scheduler = MultiStepSchedule(milestones=(2,), factor=0.5).build(optimizer, 4)
    seen = []
    for _ in range(3):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [[1.0, 0.1], [1.0, 0.1], [0.5, 0.05]]


def test_an_evaluation_dataset_may_have_an_inference_of_its_own(tiny_settings):
    windows, whole = SlidingWindow(32, 16), WholeImage()
    module = MaskCLIP(clip=tiny_settings, templates="single", inference=windows, inference_for={"pets": whole}).eval()
    vocabulary = Vocabulary.from_words(["cat", "dog", "sky"])
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        usual = module.segmenter(vocabulary)(images, [(64, 64)])[0].labels
        other = module.segmenter(vocabulary, "pets")(images, [(64, 64)])[0].labels
        module.inference = whole
        expected = module.segmenter(vocabulary)(images, [(64, 64)])[0].labels
    assert torch.equal(other, expected)
    assert not torch.equal(other, usual)
