"""Plain JPEG and PNG files by OpenCV, which takes less time than Pillow for the same pixels.

OpenCV decodes what it can of a broken file and says nothing. So only files whose structure is whole are taken here; for
all others, and for everything that is not plain, the answer is None and Pillow decides.
"""

from __future__ import annotations

import cv2
import numpy as np

_RESTARTS = range(0xD0, 0xD8)
_IEND = b"\0\0\0\0IEND\xaeB`\x82"


def plain_jpeg(encoded: bytes, largest: int) -> np.ndarray | None:
    """Decode a sequential JPEG of three components, 8 bits each, as stored (EXIF turns nothing).

    Args:
        encoded: The file.
        largest: Number of pixels that is not exceeded.

    Returns:
        RGB, uint8 `(H, W, 3)`; None for any other file.
    """
    frame = _frame(encoded)
    if frame is None:
        return None
    height, width, scan = frame
    if height * width > largest or not encoded.endswith(b"\xff\xd9") or scan >= len(encoded) - 2:
        return None
    # Between the header and the end there is no marker but restarts: 0xFF as a number is followed by 0.
    data = np.frombuffer(encoded, np.uint8)[scan:-2]
    after = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
    if data[-1] == 0xFF or not ((after == 0) | ((after >= _RESTARTS.start) & (after < _RESTARTS.stop))).all():
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    return pixels if pixels is not None and pixels.shape == (height, width, 3) else None


def _frame(encoded: bytes) -> tuple[int, int, int] | None:
    """Height, width and start of the only scan of a sequential JPEG; None for any other file."""
    place, size = 2, None
    if not encoded.startswith(b"\xff\xd8"):
        return None
    while place + 9 < len(encoded) and encoded[place] == 0xFF:
        marker, length = encoded[place + 1], int.from_bytes(encoded[place + 2 : place + 4])
        if marker in (0xC0, 0xC1):
            precision, components = encoded[place + 4], encoded[place + 9]
            size = int.from_bytes(encoded[place + 5 : place + 7]), int.from_bytes(encoded[place + 7 : place + 9])
            if (precision, components) != (8, 3):
                return None
        elif marker == 0xDA:
            return None if size is None else (*size, place + 2 + length)
        elif not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None
        place += 2 + length
    return None


def plain_grey_png(encoded: bytes, largest: int) -> np.ndarray | None:
    """Decode a PNG of one grey channel.

    Args:
        encoded: The file.
        largest: Number of pixels that is not exceeded.

    Returns:
        uint8 or uint16 `(H, W)`, the stored pixels; None for any other file.
    """
    if not (encoded.startswith(b"\x89PNG\r\n\x1a\n") and encoded.endswith(_IEND) and len(encoded) > 26):
        return None
    width, height, depth, color = (
        int.from_bytes(encoded[start:end]) for start, end in ((16, 20), (20, 24), (24, 25), (25, 26))
    )
    if color != 0 or depth not in (8, 16) or height * width > largest:
        return None
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if pixels is not None and pixels.shape == (height, width) else None
