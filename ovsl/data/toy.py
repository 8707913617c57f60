"""The toy world: generated scenes of coloured and patterned shapes, an open-vocabulary benchmark without a download.

Things are compositions `attribute shape` ("red circle", "striped star"); stuff fills the background, so that every
pixel belongs to a named class. A scene is a pure function of `(seed, index, size)`: no files, no state.
The classes are listed in `ovsl/vocabulary/data/toy.json` in the order used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from ovsl.data.sources import Row, Segments, Source

ATTRIBUTES = ("red", "yellow", "blue", "purple", "white", "black", "striped", "checkered", "dotted")
SHAPES = ("circle", "triangle", "star", "ring")
THINGS = tuple(f"{attribute} {shape}" for attribute in ATTRIBUTES for shape in SHAPES)
STUFF = ("grass", "sand", "water", "brick wall")
CLASSES = THINGS + STUFF

_COLORS = {
    "red": (205, 35, 40),
    "yellow": (245, 210, 30),
    "blue": (35, 60, 200),
    "purple": (140, 45, 165),
    "white": (232, 232, 232),
    "black": (38, 38, 38),
}
_BANK_SIZE = 1024
_RIM_PIXELS = 3.0
_TILT = np.pi / 8
_STRIPE_PERIOD = 8.0
_CHECKER_CELL = 5.0
_DOT_SPACING = 8.0
_DOT_RADIUS = 2.6


@dataclass(frozen=True)
class SceneObject:
    """One drawn object.

    Args:
        class_index: Index into `CLASSES`, below `len(THINGS)`.
        visible_pixels: Number of its pixels that no later object hides.
    """

    class_index: int
    visible_pixels: int


@dataclass(frozen=True)
class Scene:
    """One generated scene.

    Args:
        image: RGB, uint8, `(H, W, 3)`.
        semantic: Class index of every pixel, uint8, `(H, W)`; no pixel is ignored.
        instances: uint8 `(H, W)`; 0 where stuff is visible, `i + 1` where `objects[i]` is.
        objects: Objects from back to front.
        stuff: Class indices of the background's one or two materials.
        caption: An English sentence that names every object and every material.
    """

    image: np.ndarray
    semantic: np.ndarray
    instances: np.ndarray
    objects: tuple[SceneObject, ...]
    stuff: tuple[int, ...]
    caption: str

    @property
    def classes(self) -> tuple[int, ...]:
        """Sorted indices of the classes that the caption names, each once."""
        return tuple(sorted({item.class_index for item in self.objects} | set(self.stuff)))


def render_scene(
    seed: int,
    index: int,
    size: int = 128,
    *,
    num_objects: tuple[int, int] = (1, 4),
    object_size: tuple[float, float] = (0.34, 0.62),
    classes: Sequence[int] | None = None,
) -> Scene:
    """Draw scene `index` of the world `seed`.

    Args:
        seed: Non-negative seed of the world; splits use different seeds.
        index: Non-negative number of the scene.
        size: Height and width in pixels.
        num_objects: Least and largest number of objects; one that finds no free place is left out (never the first).
        object_size: Range of an object's diameter as a fraction of `size`.
        classes: Thing classes to draw from; all by default.

    Returns:
        The scene; equal arguments give an identical one on every machine with the same numpy and OpenCV.
    """
    rng = np.random.default_rng((seed, index, size))
    image, semantic, stuff = _render_background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    candidates = np.arange(len(THINGS)) if classes is None else np.asarray(classes)
    drawn: list[int] = []
    for _ in range(rng.integers(num_objects[0], num_objects[1] + 1)):
        class_index = int(rng.choice(candidates))
        if _render_object(rng, image, instances, class_index, rng.uniform(*object_size) * size, len(drawn) + 1):
            drawn.append(class_index)
    semantic = np.concatenate([[0], drawn]).astype(np.uint8)[instances] * (instances > 0) + semantic * (instances == 0)
    counts = np.bincount(instances.ravel(), minlength=len(drawn) + 1)
    objects = tuple(SceneObject(name, int(count)) for name, count in zip(drawn, counts[1:], strict=True))
    pixels = np.clip(image + rng.normal(0, 3) + _noise_bank()[:size, :size, None] * 3, 0, 255).astype(np.uint8)
    return Scene(pixels, semantic, instances, objects, stuff, _caption(rng, drawn, stuff))


class ToySource(Source):
    """Scenes of the toy world, drawn when they are asked for.

    Args:
        seed: Seed of the scenes; two seeds share no scene.
        length: Number of scenes.
        size: Height and width of the scenes in pixels.
        panoptic: Whether scenes come with their segments: every object and every material.
    """

    def __init__(self, seed: int = 0, length: int = 2000, size: int = 128, panoptic: bool = True) -> None:
        self.seed = seed
        self.length = length
        self.size = size
        self.panoptic = panoptic
        self.name = f"toy scenes (seed {seed})"

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> Row:
        """Draw one scene; see `Source`."""
        scene = render_scene(self.seed, index, self.size)
        segments = None
        if self.panoptic:
            classes = np.array([*(drawn.class_index for drawn in scene.objects), *scene.stuff])
            # Objects are numbered in the scene already; the materials follow.
            materials = np.zeros(classes.max() + 1, np.uint16)
            materials[list(scene.stuff)] = len(scene.objects) + 1 + np.arange(len(scene.stuff))
            ids = np.where(scene.instances > 0, scene.instances, materials[scene.semantic])
            segments = Segments(ids, classes, np.zeros(len(classes), bool))
        return Row(f"toy-{self.seed}-{index:06d}", scene.image, scene.semantic, segments=segments)


def _caption(rng: np.random.Generator, drawn: list[int], stuff: tuple[int, ...]) -> str:
    """Name everything in random order: "a red circle and a blue star on grass"."""
    things = [f"a {CLASSES[i]}" for i in rng.permutation(drawn).astype(int)]
    materials = [CLASSES[i] for i in stuff]
    sentence = f"{_enumerate(things)} {rng.choice(['on', 'with', 'over', 'in front of'])} {_enumerate(materials)}"
    return str(rng.choice(["{}", "a photo of {}", "a picture of {}", "there is {}"])).format(sentence)


def _enumerate(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _render_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Fill the image with one material, or with two that meet along a slanted wavy line."""
    first, second = (int(i) for i in rng.choice(len(STUFF), 2, replace=False))
    image = _crop_texture(rng, first, size)
    semantic = np.full((size, size), len(THINGS) + first, np.uint8)
    if rng.random() < 0.5:
        return image, semantic, (len(THINGS) + first,)
    x = np.arange(size, dtype=np.float32) / size
    border = rng.uniform(0.35, 0.65) + rng.uniform(-0.25, 0.25) * (x - 0.5)
    border = border + 0.02 * np.sin(rng.uniform(6, 14) * x + rng.uniform(0, 6))
    below = x[:, None] > border[None]
    image[below] = _crop_texture(rng, second, size)[below]
    semantic[below] = len(THINGS) + second
    return image, semantic, (len(THINGS) + first, len(THINGS) + second)


def _render_object(
    rng: np.random.Generator, image: np.ndarray, instances: np.ndarray, class_index: int, diameter: float, number: int
) -> bool:
    """Draw one object with its shadow into `image` and `instances`; False where no place was found."""
    size = image.shape[0]
    attribute, shape = ATTRIBUTES[class_index // len(SHAPES)], SHAPES[class_index % len(SHAPES)]
    angle = rng.uniform(-_TILT, _TILT)
    outline = _outline(shape, diameter / 2, angle, rng.uniform(0.85, 1.0))
    areas = np.bincount(instances.ravel(), minlength=number)
    for _ in range(12):
        center = rng.uniform(0.4 * diameter, size - 0.4 * diameter, 2)
        alpha = np.zeros((size, size), np.uint8)
        # Four fractional bits: outlines do not snap to whole pixels.
        polygons = [np.round((polygon + center) * 16).astype(np.int32) for polygon in outline]
        cv2.fillPoly(alpha, polygons, 255, lineType=cv2.LINE_AA, shift=4)
        inside = alpha > 127
        hidden = np.bincount(instances[inside], minlength=number)
        # What is already there must stay recognisable.
        if np.all(hidden[1:] <= 0.3 * areas[1:]):
            break
    else:
        return False
    left, top = np.maximum(np.floor(center - diameter / 2 - 6), 0).astype(int)
    right, bottom = np.minimum(np.ceil(center + diameter / 2 + 10), size).astype(int)
    region = np.s_[top:bottom, left:right]
    offset = rng.integers(2, 5, 2)
    shadow = cv2.blur(np.roll(alpha, tuple(offset), (0, 1))[region], (5, 5))
    canvas = image[region] * (1 - shadow[..., None] * (0.45 / 255))
    weight = alpha[region][..., None] * (1 / 255)
    surface = _surface(rng, attribute, inside[region], center - (left, top), diameter, angle)
    image[region] = canvas * (1 - weight) + surface * weight
    instances[inside] = number
    return True


def _outline(shape: str, radius: float, angle: float, squeeze: float) -> list[np.ndarray]:
    """Polygons `(N, 2)` of a shape around the origin, filled by the even-odd rule."""
    if shape in ("circle", "ring"):
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        unit = [
            np.stack([np.cos(turn), np.sin(turn)], 1) * scale for scale in ((1.0, 0.5) if shape == "ring" else (1,))
        ]
    else:
        corners_of = {"triangle": 3, "star": 10}[shape]
        # Upright: one tip on top.
        turn = np.linspace(0, 2 * np.pi, corners_of, endpoint=False) - np.pi / 2
        reach = np.where(np.arange(corners_of) % 2 == 1, 0.42, 1.0) if shape == "star" else np.ones(corners_of)
        unit = [np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None]]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [polygon * (1, squeeze) @ rotation * radius for polygon in unit]


def _surface(
    rng: np.random.Generator, attribute: str, inside: np.ndarray, center: np.ndarray, diameter: float, angle: float
) -> np.ndarray:
    """Colour of an object's pixels `(h, w, 3)`: paint or pattern, lit from one side, with a darker rim."""
    height, width = inside.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - np.float32(center[0]), y - np.float32(center[1])
    if attribute in _COLORS:
        paint = np.array(_COLORS[attribute], np.float32) + rng.uniform(-18, 18, 3).astype(np.float32)
        surface = np.broadcast_to(paint, (height, width, 3))
    else:
        tilt = angle + rng.uniform(0, np.pi)
        across, along = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
        if attribute == "striped":
            ink = np.sin(across * (2 * np.pi / _STRIPE_PERIOD)) > 0
        elif attribute == "checkered":
            ink = (np.floor(across / _CHECKER_CELL) + np.floor(along / _CHECKER_CELL)) % 2 == 0
        else:
            ink = (
                np.hypot(across % _DOT_SPACING - _DOT_SPACING / 2, along % _DOT_SPACING - _DOT_SPACING / 2)
                < _DOT_RADIUS
            )
        dark, light = rng.uniform(15, 60, 3).astype(np.float32), rng.uniform(215, 250, 3).astype(np.float32)
        surface = np.where(ink[..., None], dark, light)
    sun = rng.uniform(0, 2 * np.pi)
    light_side = 1 + 0.35 * (x * np.cos(sun) + y * np.sin(sun)) / diameter
    grain = 1 + 0.05 * _noise_crop(rng, height, width)
    rim = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    edge = 0.7 + 0.3 * np.minimum(rim / _RIM_PIXELS, 1)
    return surface * (light_side * grain * edge)[..., None]


def _color(*channels: float) -> np.ndarray:
    return np.array(channels, np.float32)


def _noise_crop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    top, left = rng.integers(0, _BANK_SIZE - height), rng.integers(0, _BANK_SIZE - width)
    return _noise_bank()[top : top + height, left : left + width]


def _crop_texture(rng: np.random.Generator, stuff: int, size: int) -> np.ndarray:
    """Cut a random, randomly lit piece of a material, float32 `(size, size, 3)`."""
    top, left = rng.integers(0, _BANK_SIZE - size, 2)
    piece = _texture_bank()[stuff][top : top + size, left : left + size]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    return piece * np.float32(rng.uniform(0.8, 1.15)) + rng.uniform(-8, 8, 3).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Make fixed unit-variance noise, float32 `(1024, 1024)`; scenes cut their grain from it, which is much cheaper."""
    noise = np.random.default_rng(7).normal(size=(_BANK_SIZE, _BANK_SIZE)).astype(np.float32)
    noise = noise + 2 * cv2.GaussianBlur(noise, (0, 0), 1.5)
    return noise / noise.std()


@lru_cache(maxsize=1)
def _texture_bank() -> list[np.ndarray]:
    """Make the four materials in the order of `STUFF`, float32 `(1024, 1024, 3)` each."""
    rng = np.random.default_rng(11)
    side = _BANK_SIZE

    def smooth(sigma_x: float, sigma_y: float) -> np.ndarray:
        noise = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), sigma_x, sigmaY=sigma_y)
        return (noise / noise.std())[..., None]

    y, x = np.mgrid[:side, :side].astype(np.float32)
    grass = _color(78, 140, 52) + _color(16, 24, 12) * smooth(0.8, 4) + _color(14, 10, 4) * smooth(12, 12)
    sand = _color(218, 190, 138) + 8 * smooth(0.7, 0.7) + _color(10, 9, 7) * smooth(9, 5)
    waves = np.sin(y * 0.55 + 2.5 * smooth(14, 5)[..., 0])[..., None]
    water = _color(95, 185, 195) + _color(26, 20, 16) * waves + 5 * smooth(3, 1)
    row = y // 12
    column = (x + 14 * (row % 2)) // 28
    mortar = (y % 12 < 2) | ((x + 14 * (row % 2)) % 28 < 2)
    tone = rng.normal(size=(side, side)).astype(np.float32)[row.astype(int), column.astype(int)][..., None]
    brick = _color(158, 92, 70) + _color(14, 10, 8) * tone + 6 * smooth(1, 1)
    wall = np.where(mortar[..., None], _color(190, 182, 170) + 5 * smooth(1, 1), brick)
    return [grass, sand, water, wall]
