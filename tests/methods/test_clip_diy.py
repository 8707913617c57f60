from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.errors import InputError
from ovsl.inference import resize
from ovsl.layers import DINOSettings, FOUNDSettings
from ovsl.methods import CLIPDIY
from ovsl.methods.clip_diy.network import CLIPDIYSizes, aggregate, crops, guide, resize_bilinear
from ovsl.vocabulary import Vocabulary
from tests.conftest import TINY_CLIP

SIZES = CLIPDIYSizes(48, (48, 20), (2,), (1.0, 0.5))
TINY_DINO = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
FOREGROUND = FOUNDSettings(None, DINOSettings("vit_small_patch8_224.dino", None, TINY_DINO))


def build(**options):
    torch.manual_seed(0)
    return CLIPDIY(CLIPSettings("tiny", config=TINY_CLIP), **({"sizes": SIZES} | options)).eval()


def images(*size, count=2):
    return torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def text(num_classes=3):
    vectors = torch.nn.functional.normalize(torch.randn(num_classes, 16), dim=1)
    return TextEmbeddings(vectors, torch.arange(num_classes), num_classes)


@torch.no_grad()
def test_the_queue_gives_what_one_crop_at_a_time_gives():
    """The published way: every crop through Pillow and CLIP alone."""
    module, pixels, words = build(window_batch_size=5), images(48, 48), text()
    for (size, step), grid in zip(module.levels, module.grids(pixels, words), strict=True):
        side = (48 - size) // step + 1
        assert grid.shape == (2, 3, side, side)
        for image in range(2):
            array = pixels[image].permute(1, 2, 0).numpy()
            for row in range(side):
                for column in range(side):
                    crop = Image.fromarray(array).crop(
                        (column * step, row * step, column * step + size, row * step + size)
                    )
                    small = np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))
                    normalized = module.clip.normalize(torch.from_numpy(small.copy()).permute(2, 0, 1)[None])
                    embedding = torch.nn.functional.normalize(module.clip.model.encode_image(normalized), dim=1)
                    torch.testing.assert_close(grid[image, :, row, column], (embedding @ words.vectors.T)[0])


def test_what_crops_leave_over_is_not_looked_at():
    pixels = images(48, 48)
    assert crops(pixels, 20, 10).shape == (2, 3, 3, 3, 20, 20)
    changed = pixels.clone()
    changed[..., 40:, :] = 0
    assert torch.equal(crops(pixels, 20, 10), crops(changed, 20, 10))


def test_the_mean_does_not_divide_by_the_weights():
    grids = [torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 2, 2), 5.0)]
    found = aggregate(grids, (1.0, 0.5), 4, "bilinear")
    torch.testing.assert_close(found, torch.full((1, 2, 4, 4), (3.0 + 2.5) / 2))


def test_foreground_guides_all_classes_but_the_first():
    scores = torch.rand(1, 3, 2, 2)
    sure, none = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert (guide(scores, sure).argmax(1) > 0).all()
    assert (guide(scores, none).argmax(1) == 0).all()


@torch.no_grad()
def test_foreground_is_found_at_the_size_of_the_image():
    module, pixels, words = build(foreground=FOREGROUND), images(40, 60), text()
    scores = module(pixels, words).scores
    assert scores.shape == (2, 3, 48, 48)
    square = resize_bilinear(pixels, 48)
    plain = build()(square, words).scores
    expected = guide(plain, resize(module.found.saliency(pixels), (48, 48)))
    torch.testing.assert_close(scores, expected)
    assert not torch.allclose(scores, guide(plain, module.found.saliency(square)))


@torch.no_grad()
def test_labels_have_the_size_that_is_asked_for():
    segmenter = build().segmenter(Vocabulary.from_words(["cat", "sky"]))
    sizes = [(30, 41), (64, 17)]
    found = segmenter(list(images(40, 60)), sizes)
    assert [tuple(each.labels.shape) for each in found] == sizes


@torch.no_grad()
def test_the_best_word_speaks_for_its_class():
    module, pixels = build(), images(48, 48)
    rows = text(3)
    double = TextEmbeddings(rows.vectors, torch.tensor([0, 0, 1]), 2)
    for single, merged in zip(module.grids(pixels, rows), module.grids(pixels, double), strict=True):
        torch.testing.assert_close(merged, torch.stack([single[:, :2].amax(1), single[:, 2]], dim=1))


def test_nothing_trains():
    module = build(foreground=FOREGROUND)
    assert not CLIPDIY.trainable
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module.train().found.dino.model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": replace(SIZES, weights=(1.0,))}, "2 levels, but there are 1 weights"),
        ({"sizes": replace(SIZES, crop_sizes=(64, 20))}, "Crops of 64 pixels"),
        ({"sizes": replace(SIZES, strides=(50,))}, "every 0"),
        ({"foreground": FOUNDSettings()}, "FOUND's released decoder"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_a_convolutional_tower_is_refused():
    with pytest.raises(InputError, match="CLIP-DIY needs a CLIP with a vision transformer and a class token"):
        CLIPDIY(CLIPSettings("toy_convnext"))


def test_guidance_needs_the_background():
    with pytest.raises(InputError, match="class 0 of 'words' is 'cat'"):
        build(foreground=FOREGROUND).words(Vocabulary.from_words(["cat", "background"]))
    assert len(build(foreground=FOREGROUND).words(Vocabulary.from_words(["background", "cat"])).vocabulary) == 2
    assert len(build().words(Vocabulary.from_words(["cat", "dog"])).vocabulary) == 2
