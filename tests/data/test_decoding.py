"""One policy for whatever a photo file may hold; masks keep their stored pixels."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsl.api import as_array
from ovsl.data import EvaluationTransform, ImageFiles
from ovsl.data.sources import UndecodableImageError, decode_image

GREY = np.array([[0, 64], [128, 255]], dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes, upright: bool = False) -> np.ndarray:
    return np.asarray(decode_image(data, "image 'x'", mode="RGB", upright=upright))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = GREY.astype(np.uint16) * 257
    assert np.array_equal(pixels(encoded(Image.fromarray(deep)))[..., 0], GREY)
    assert np.array_equal(pixels(encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"))[..., 0], GREY)


def test_other_colour_spaces_become_rgb() -> None:
    grey = Image.fromarray(GREY)
    expected = np.repeat(GREY[..., None], 3, axis=2)
    assert np.array_equal(pixels(encoded(grey)), expected)
    assert np.array_equal(pixels(encoded(grey.convert("P"))), expected)
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert np.abs(pixels(encoded(red.convert("CMYK"), "TIFF")).astype(int) - np.asarray(red)).max() < 3


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    assert pixels(encoded(image)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = Image.new("LA", (1, 1), (7, 0))
    assert pixels(encoded(grey)).tolist() == [[[255, 255, 255]]]


def test_photos_are_turned_upright_and_dataset_images_are_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
    assert pixels(data).shape == (20, 30, 3)
    assert pixels(data, upright=True).shape == (30, 20, 3)
    (tmp_path / "photo.jpg").write_bytes(data)
    assert ImageFiles([tmp_path / "photo.jpg"], ["photo"]).row(0).image.shape == (30, 20, 3)
    assert as_array(tmp_path / "photo.jpg").shape == (30, 20, 3)
    with Image.open(tmp_path / "photo.jpg") as opened:
        assert as_array(opened).shape == (30, 20, 3)


def test_an_animation_gives_its_first_frame_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    with caplog.at_level(logging.WARNING):
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]
    assert "image 'x' has 2 frames; only the first is used" in caplog.text


def test_bombs_and_pixels_without_a_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    large = encoded(Image.new("L", (300, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    assert pixels(large).shape == (100, 300, 3), "below the limit at which Pillow refuses, nothing is said"
    for limited in ((Image, "MAX_IMAGE_PIXELS"), ("ovsl.data.sources.LARGEST_IMAGE",)):
        with monkeypatch.context() as limit:
            limit.setattr(*limited, 10_000)
            with pytest.raises(UndecodableImageError, match=r"Cannot decode the image 'x'.*pixels"):
                pixels(large)
    with pytest.raises(UndecodableImageError, match="32 bits"):
        pixels(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_masks_keep_their_stored_pixels() -> None:
    for values in (GREY, GREY.astype(np.uint16) * 257):
        assert np.array_equal(np.asarray(decode_image(encoded(Image.fromarray(values)), "mask")), values)
    indexed = Image.fromarray(GREY, "P")
    indexed.putpalette([7] * 768)
    assert np.array_equal(np.asarray(decode_image(encoded(indexed), "mask")), GREY)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((3000, 4000), (512, 683)), ((100, 80), (100, 80)), ((1, 1), (64, 64)), ((3, 9000), (64, 2048))],
)
def test_a_photo_of_any_size_becomes_one_that_networks_take(size: tuple[int, int], expected: tuple[int, int]) -> None:
    transform = EvaluationTransform(512, 2048, enlarge=False, min_size=64)
    assert transform(np.zeros((*size, 3), np.uint8)).shape[:2] == expected
