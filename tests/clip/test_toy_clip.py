from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from ovsl.clip import ImageTower, TextClassifier, build_clip
from ovsl.clip.toy import TOY_CLIPS, load_toy_clip
from ovsl.data.toy import CLASSES, THINGS
from ovsl.data.toy_captions import render_masked_scenes, render_views
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary, available_templates, load_templates

# Drawn from another world than the one that the training's own evaluation looks at.
SEED = 424_242


@pytest.fixture(scope="module", params=TOY_CLIPS)
def clip(request):
    torch.manual_seed(0)
    return build_clip(request.param)


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("toy", split="zero_shot")


@torch.no_grad()
def mean_iou(clip, vocabulary, count=40):
    image, semantic = render_masked_scenes(count, seed=SEED)
    text = TextClassifier(clip, "vild_14")(vocabulary).vectors
    tower = clip.require_tower(ImageTower, "the test")
    dense = functional.normalize(tower.dense_features(clip.normalize(image)), dim=1)
    scores = (100 * torch.einsum("bdhw,cd->bchw", dense, text)).softmax(1)
    predicted = functional.interpolate(scores, size=semantic.shape[-2:], mode="bilinear").argmax(1)
    hit = (predicted == semantic).flatten()
    intersection = torch.bincount(semantic.flatten()[hit], minlength=len(CLASSES))
    union = sum(torch.bincount(x.flatten(), minlength=len(CLASSES)) for x in (predicted, semantic)) - intersection
    return (intersection / union).numpy()


@pytest.mark.parametrize("name", TOY_CLIPS)
def test_shipped_files_are_small(name):
    import ovsl.clip.toy

    file = Path(ovsl.clip.toy.__file__).with_name(f"{name}.safetensors")
    assert file.stat().st_size < 5_000_000


@pytest.mark.parametrize("name", TOY_CLIPS)
def test_words_of_the_world_and_of_the_templates_are_known(name):
    toy = load_toy_clip(name)
    clip = build_clip(name)
    for templates in map(load_templates, available_templates()):
        # The tokenizer works word by word: every template and every class once is enough.
        clip.tokenize([*(template.format("ring") for template in templates), *CLASSES])
    rows = toy.model.token_embedding.weight.abs().sum(1) > 0
    assert set(rows.nonzero().flatten().tolist()) == toy.known_tokens
    with pytest.raises(InputError, match="giraffe"):
        clip.tokenize(["a photo of a giraffe."])


def test_unknown_toy_clip_is_named():
    with pytest.raises(InputError, match="toy_resnet"):
        load_toy_clip("toy_resnet")


@torch.no_grad()
def test_zero_shot_classification(clip, vocabulary):
    images, labels = render_views(216, seed=SEED)
    text = TextClassifier(clip, "vild_14")(vocabulary).vectors[: len(THINGS)]
    embeddings = functional.normalize(clip.model.encode_image(clip.normalize(images)), dim=-1)
    correct = (embeddings @ text.T).argmax(-1) == labels
    unseen = torch.isin(labels, torch.tensor(vocabulary.unseen_indices))
    assert correct.float().mean() >= 0.95
    assert correct[unseen].float().mean() >= 0.9


def test_value_path_of_the_vit_segments(vocabulary):
    iou = mean_iou(build_clip("toy_vit"), vocabulary)
    assert np.nanmean(iou) >= 0.3
    assert np.nanmean(iou[vocabulary.unseen_indices]) >= 0.25


def test_projected_map_of_the_convnext_is_local(vocabulary):
    # 16 cells an image: far from fine, but a global average alone would give next to nothing.
    assert np.nanmean(mean_iou(build_clip("toy_convnext"), vocabulary)) >= 0.15
