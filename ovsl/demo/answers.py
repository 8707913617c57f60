"""What stands behind the page: words as they are typed, methods that are asked, files that are kept for a while."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ovsl.api import LoadedMethod, PhotoSegmentation, as_array
from ovsl.callbacks.predictions import write_prediction
from ovsl.data.toy import CLASSES, STUFF, render_scene
from ovsl.errors import InputError
from ovsl.results.drawing import Picture, Segments
from ovsl.vocabulary import Vocabulary

MOST_WORDS, KEPT_ANSWERS = 5000, 20
"""Words of one question; answers whose files can still be downloaded."""

Sample = tuple[str, str]
"""Path of a photo, and the words that go with it; none where it is empty."""


@dataclass(frozen=True)
class Answer:
    """What one method said of a photo.

    Attributes:
        title: Who said it.
        found: What.
        seconds: How long it took.
    """

    title: str
    found: PhotoSegmentation
    seconds: float

    @property
    def segments(self) -> Segments | None:
        """The panoptic map as arrays, for drawing and files; None where the method gives none."""
        panoptic = self.found.panoptic
        return None if panoptic is None else Segments(panoptic.segment_ids.numpy(), panoptic.classes.numpy())


def parse_words(text: str) -> Vocabulary:
    """Read what was typed: a word a line, a shipped list by name, or words of one line separated by commas.

    Raises:
        InputError: No words, too many, or one that occurs twice.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        only = lines[0].strip()
        if only in Vocabulary.available():
            return Vocabulary.load(only)
        lines = only.split(",")  # a single class would be the answer everywhere
    if not lines:
        raise InputError("Type some words first, one a line.")
    if len(lines) > MOST_WORDS:
        raise InputError(f"These are {len(lines)} words, and the page takes {MOST_WORDS}: leave some out.")
    return Vocabulary.from_words(lines)


class Answers:
    """Asks methods, and keeps the files of the last answers for download.

    Args:
        methods: By the names that the page gives them.
        folder: Where files are kept.
    """

    def __init__(self, methods: Mapping[str, LoadedMethod], folder: Path) -> None:
        self.methods = dict(methods)
        self.folder = folder
        self._kept: deque[list[Path]] = deque()

    def ask(self, photo: str | None, words: str, *names: str) -> tuple[list[Answer], list[Path]]:
        """Ask each named method about a photo.

        Args:
            photo: An image file.
            words: See `parse_words`.
            *names: Keys of `methods`; others, and repeated ones, do not count.

        Returns:
            The answers, and their files: label map, panoptic map where there is one, JSON.

        Raises:
            InputError: No photo, or one that cannot be read; words that cannot be used.
        """
        if not photo:
            raise InputError("Drop a photo first, or take a sample.")
        vocabulary, image = parse_words(words), as_array(photo)
        answers, files = [], []
        for name in dict.fromkeys(name for name in names if name in self.methods):
            start = time.perf_counter()
            found = self.methods[name].with_words(vocabulary)(image)
            answers.append(Answer(name, found, time.perf_counter() - start))
            files += self._write(answers[-1], Path(photo).stem)
        self._kept.append(files)
        if len(self._kept) > KEPT_ANSWERS:
            for file in self._kept.popleft():
                file.unlink(missing_ok=True)
        return answers, files

    def _write(self, answer: Answer, stem: str) -> list[Path]:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        found = answer.found
        picture = Picture(stem, found.photo, found.labels, segments=answer.segments)
        target = folder / "".join(letter if letter.isalnum() else "-" for letter in f"{stem[:60]}-{answer.title[:60]}")
        write_prediction(picture, found.vocabulary, target, overlay=False, method=answer.title)
        return sorted(folder.iterdir())


def toy_samples(folder: Path, count: int = 6) -> list[Sample]:
    """Draw scenes of the toy world, whose words every shipped CLIP knows.

    Args:
        folder: Where to.
        count: How many.
    """
    samples = []
    for index in range(count):
        scene = render_scene(2, index)
        path = folder / f"scene-{index + 1}.png"
        Image.fromarray(scene.image).save(path)
        words = dict.fromkeys([CLASSES[label] for label in scene.classes] + list(STUFF))
        samples.append((str(path), "\n".join(words)))
    return samples
