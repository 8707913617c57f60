"""Augmentation and resizing."""

import numpy as np
import pytest
from PIL import Image

from ovsl.data.photometric import PhotometricDistortion
from ovsl.data.transforms import EvaluationTransform, TrainTransform, resize
from ovsl.errors import InputError

IGNORE = 255


def apply(transform: TrainTransform, image, mask, seed=0, ignore_index=IGNORE):
    pipeline = transform.pipeline(ignore_index)
    pipeline.set_random_seed(seed)
    result = pipeline(image=image, mask=mask)
    return result["image"], result["mask"]


def scene(height: int, width: int, seed: int = 0):
    """An image whose red channel is the mask, so that any misalignment shows."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 200
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[..., 0] = mask
    return image, mask


@pytest.mark.parametrize("size", [(20, 30), (90, 70), (200, 40)])
@pytest.mark.parametrize("short_side", [None, 64])
def test_crop_has_the_asked_size_and_padding_is_black_and_ignored(size, short_side):
    image, mask = scene(*size)
    for seed in range(5):
        cropped, labels = apply(TrainTransform((48, 64), short_side=short_side), image, mask, seed)
        assert cropped.shape == (48, 64, 3)
        assert labels.shape == (48, 64)
        assert cropped.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 200, IGNORE}
        assert (cropped[labels == IGNORE] == 0).all()


def test_padding_lies_right_and_below():
    image, mask = scene(20, 30)
    cropped, labels = apply(TrainTransform(40, scale=(1, 1), flip=0), image, mask)
    np.testing.assert_array_equal(cropped[:20, :30], image)
    assert (labels[20:] == IGNORE).all()
    assert (labels[:, 30:] == IGNORE).all()


def test_image_and_mask_stay_aligned():
    image, mask = scene(100, 120)
    for seed in range(10):
        cropped, labels = apply(TrainTransform(64, scale=(1, 1)), image, mask, seed)
        np.testing.assert_array_equal(cropped[..., 0], labels)
        cropped, labels = apply(TrainTransform(64), image, mask, seed)
        inside = labels != IGNORE
        # Bilinear and nearest differ in the one or two columns at the edge.
        assert (cropped[..., 0] == labels)[inside].mean() > 0.9


def test_seed_decides_everything():
    image, mask = scene(100, 120)
    transform = TrainTransform(64, photometric=True, category_max_ratio=0.75)
    first, again, other = (apply(transform, image, mask, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_scale_is_relative_to_the_short_side_and_bounded_by_the_long_side():
    image, mask = scene(100, 400)

    def height(**options):
        # The crop is larger than anything, so the labelled rows are those of the scaled image.
        _, labels = apply(TrainTransform(900, scale=(1, 1), flip=0, **options), image, mask)
        return int((labels != IGNORE).any(axis=1).sum())

    assert height(short_side=200) == 200
    assert height(short_side=200, long_side=600) == 150


def test_scale_spans_its_range():
    image, mask = scene(100, 100)
    transform = TrainTransform(220, scale=(0.5, 2.0), flip=0)
    heights = [int((apply(transform, image, mask, seed)[1] != IGNORE).any(axis=1).sum()) for seed in range(60)]
    assert 50 <= min(heights) < 65
    assert 185 < max(heights) <= 200


def test_flip_mirrors_half_of_the_samples():
    image, mask = scene(32, 32)
    transform = TrainTransform(32, scale=(1, 1))
    flipped = [(apply(transform, image, mask, seed)[0] == image[:, ::-1]).all() for seed in range(60)]
    assert 15 < sum(flipped) < 45


def test_category_ratio_prefers_mixed_crops():
    mask = np.zeros((100, 100), np.uint8)
    mask[:40, :40] = 1
    mask[60:] = IGNORE
    image = np.zeros((100, 100, 3), np.uint8)

    def mixed(**options):
        transform = TrainTransform(30, scale=(1, 1), **options)
        crops = [apply(transform, image, mask, seed)[1] for seed in range(40)]
        shares = [np.bincount(c[c != IGNORE], minlength=2) / max(1, (c != IGNORE).sum()) for c in crops]
        return sum(0 < share.max() < 0.75 for share in shares)

    assert mixed(category_max_ratio=0.75) > 2 * mixed()


def test_sixteen_bit_masks_keep_their_values():
    mask = np.full((20, 20), 846, np.uint16)
    _, labels = apply(TrainTransform(40), np.zeros((20, 20, 3), np.uint8), mask, ignore_index=65535)
    assert set(np.unique(labels)) == {846, 65535}


def test_photometric_distortion_matches_the_arithmetic():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    distort = PhotometricDistortion()
    neutral = {"brightness": 0.0, "contrast": 1.0, "contrast_first": True, "saturation": 1.0, "hue": 0}
    np.testing.assert_array_equal(distort.apply(image, **neutral), image)
    brighter = distort.apply(image, **{**neutral, "brightness": 20.0})
    np.testing.assert_array_equal(brighter, np.clip(image.astype(int) + 20, 0, 255))
    for first in (True, False):
        contrast = distort.apply(image, **{**neutral, "contrast": 1.25, "contrast_first": first})
        np.testing.assert_array_equal(contrast, np.clip(image * 1.25, 0, 255).astype(np.uint8))
    grey = distort.apply(image, **{**neutral, "saturation": 0.5}).astype(int)
    spread = image.max(-1).astype(int) - image.min(-1)
    assert (grey.max(-1) - grey.min(-1)).mean() == pytest.approx(spread.mean() / 2, rel=0.05)
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(distort.apply(red, **{**neutral, "hue": 60})[0, 0], [0, 255, 0])
    np.testing.assert_array_equal(distort.apply(red, **{**neutral, "hue": -60})[0, 0], [0, 0, 255])


def test_evaluation_resizes_by_short_side_and_never_beyond_the_long_side():
    image = np.zeros((100, 200, 3), np.uint8)
    assert EvaluationTransform()(image) is image
    assert EvaluationTransform(short_side=50)(image).shape == (50, 100, 3)
    assert EvaluationTransform(short_side=150, max_size=200)(image).shape == (100, 200, 3)
    assert EvaluationTransform(max_size=50)(image).shape == (25, 50, 3)


def test_empty_scale_range_is_named():
    with pytest.raises(InputError, match="scale range"):
        TrainTransform(32, scale=(2.0, 0.5)).pipeline(IGNORE)


def test_short_sides_are_drawn_from_a_list_and_padding_has_the_asked_grey():
    image, mask = scene(40, 60)
    transform = TrainTransform(128, scale=(1.0, 1.0), short_side=[20, 80], fill=128, flip=0)
    sides = set()
    for seed in range(20):
        cropped, labels = apply(transform, image, mask, seed)
        assert (cropped[labels == IGNORE] == 128).all()
        sides.add(int((labels[:, 0] != IGNORE).sum()))
    assert sides == {20, 80}


def test_half_pixels_go_up() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    assert EvaluationTransform(short_side=2)(image).shape == (2, 3, 3)


@pytest.mark.parametrize("photometric", [False, True])
def test_padding_is_neither_mirrored_nor_distorted_and_may_have_a_colour(photometric):
    image, mask = scene(20, 30)
    mean = (124, 116, 104)
    transform = TrainTransform(40, scale=(1, 1), flip=1.0, photometric=photometric, fill=mean)
    for seed in range(8):
        cropped, labels = apply(transform, image, mask, seed)
        assert (labels[:20, :30] == mask[:, ::-1]).all()
        assert (labels[20:] == IGNORE).all()
        assert (labels[:, 30:] == IGNORE).all()
        assert (cropped[labels == IGNORE] == mean).all()


@pytest.mark.parametrize("size", [(48, 64), (120, 33), (97, 131), (11, 300), (96, 128)])
def test_antialiased_resize_is_that_of_pillow(size):
    image = scene(96, 128)[0]
    found = resize(image, size, "antialiased").astype(int)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.2, "white noise is the worst case; on photos less than 0.005"
    if min(size) < 96:
        plain = resize(image, size, "bilinear").astype(int)
        assert np.abs(plain - expected).mean() > 1, "bilinear without antialiasing is another picture"


@pytest.mark.parametrize("size", [(48, 64), (120, 33), (97, 131), (11, 300)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exact_nearest_resize_is_that_of_pillow(size, dtype):
    mask = np.arange(96 * 128).reshape(96, 128) % np.iinfo(dtype).max
    found = resize(np.dstack([mask, mask + 1]).astype(dtype), size, "nearest_exact")
    rows = np.asarray(Image.fromarray(np.arange(96, dtype=np.uint8)[:, None]).resize((1, size[0]), 0))[:, 0]
    columns = np.asarray(Image.fromarray(np.arange(128, dtype=np.uint8)[None]).resize((size[1], 1), 0))[0]
    np.testing.assert_array_equal(found[..., 0], mask[np.ix_(rows, columns)])
    np.testing.assert_array_equal(found[..., 1], mask[np.ix_(rows, columns)] + 1)


def test_both_transforms_resize_as_they_are_asked():
    image, mask = scene(90, 120)
    mask = np.arange(90 * 120, dtype=np.uint16).reshape(90, 120)
    options = {"interpolation": "antialiased", "mask_interpolation": "nearest_exact"}
    transform = TrainTransform(30, scale=(1, 1), short_side=30, flip=0, **options)
    pipeline = transform.pipeline(65535)
    result = pipeline(image=image, mask=mask)
    smaller = resize(image, (30, 40), "antialiased")
    left = int(np.flatnonzero((smaller[0] == result["image"][0, 0]).all(-1))[0])
    np.testing.assert_array_equal(result["image"], smaller[:, left : left + 30])
    np.testing.assert_array_equal(result["mask"], mask[1::3, 1::3][:, left : left + 30])
    np.testing.assert_array_equal(EvaluationTransform(30, interpolation="antialiased")(image), smaller)


def test_stretching_ignores_the_aspect_ratio():
    image, mask = scene(50, 100)
    stretched, labels = apply(TrainTransform(40, stretch=True, flip=0), image, mask)
    np.testing.assert_array_equal(stretched, resize(image, (40, 40), "bilinear"))
    assert (labels[:, :20] == 0).all()
    assert (labels[:, 20:] == 200).all()
