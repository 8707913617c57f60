"""Files that OpenCV decodes in Pillow's place: the same pixels, and nothing broken goes through in silence."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from ovsl.data.plain_files import plain_grey_png, plain_jpeg
from ovsl.data.sources import UndecodableImageError, decode_image, decode_pixels

LARGEST = 1 << 20


def photo(height: int, width: int) -> Image.Image:
    """Smooth areas, edges and noise."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    plain = np.stack([rows * 3 % 256, columns * 2 % 256, (rows // 16 + columns // 16) % 2 * 200], axis=-1)
    return Image.fromarray((plain + generator.normal(0, 9, plain.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def damaged(data: bytes, start: int) -> list[bytes]:
    """Bytes changed, set to 0xFF and cut out; the file keeps its end."""
    draw, found = random.Random(0), []
    for _ in range(120):
        one = bytearray(data)
        place = draw.randrange(start, len(data) - 20)
        match draw.randrange(3):
            case 0:
                one[place] ^= 1 << draw.randrange(8)
            case 1:
                one[place] = 0xFF
            case 2:
                del one[place : min(place + draw.randrange(1, 900), len(data) - 14)]
        found.append(bytes(one))
    return found


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(96, 128), (77, 51)])
def test_jpegs_have_the_same_pixels(subsampling: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned, which images with masks are not
    for options in ({"quality": 75}, {"quality": 95, "exif": exif}, {"quality": 90, "restart_marker_blocks": 4}):
        data = encoded(photo(*size), "JPEG", subsampling=subsampling, **options)
        pixels = plain_jpeg(data, LARGEST)
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(decode_image(data, "image", mode="RGB")))


def test_grey_pngs_have_the_stored_pixels() -> None:
    grey = np.asarray(photo(40, 56).convert("L"))
    for values in (grey, grey.astype(np.uint16) * 257 + 3):
        found = plain_grey_png(encoded(Image.fromarray(values), "PNG"), LARGEST)
        assert found is not None
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)


def test_what_is_not_plain_is_left_to_pillow() -> None:
    image = photo(40, 56)
    for other in (image.convert("L"), image.convert("CMYK")):
        assert plain_jpeg(encoded(other, "JPEG"), LARGEST) is None
    assert plain_jpeg(encoded(image, "JPEG", progressive=True), LARGEST) is None
    assert plain_jpeg(encoded(image, "JPEG"), 40 * 56 - 1) is None
    assert plain_jpeg(encoded(image, "PNG"), LARGEST) is None
    assert plain_jpeg(b"\xff\xd8\xff\xd9", LARGEST) is None
    for other in (image, image.convert("P"), image.convert("1"), image.convert("LA")):
        assert plain_grey_png(encoded(other, "PNG"), LARGEST) is None
    assert plain_grey_png(encoded(image.convert("L"), "PNG"), 40 * 56 - 1) is None
    assert plain_grey_png(encoded(image.convert("L"), "JPEG"), LARGEST) is None


@pytest.mark.parametrize(("format", "mode", "start"), [("JPEG", "RGB", 0), ("PNG", None, 0)])
def test_no_broken_file_is_decoded_where_pillow_refuses_it(format: str, mode: str | None, start: int) -> None:
    image = photo(96, 128) if mode else photo(96, 128).convert("L")
    data = encoded(image, format)
    refused = 0
    for broken in [*damaged(data, start), data[:-2], data[: len(data) // 2], data[: len(data) // 2] + data[-12:]]:
        try:
            expected = np.asarray(decode_image(broken, "image", mode))  # type: ignore[arg-type]
        except UndecodableImageError:
            refused += 1
            with pytest.raises(UndecodableImageError):
                decode_pixels(broken, "image", mode)  # type: ignore[arg-type]
        else:
            assert np.array_equal(decode_pixels(broken, "image", mode), expected)  # type: ignore[arg-type]
    assert refused > 10
