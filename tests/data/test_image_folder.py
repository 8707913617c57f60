from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ovsl.data import ImageFolder
from ovsl.errors import InputError


def test_images_of_all_depths_without_a_label(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for index, name in enumerate(["a/b/1.png", "a/2.png", "3.png"]):
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = ImageFolder(str(tmp_path))
    assert [source.row(index).id for index in range(len(source))] == ["3.png", "a/2.png", "a/b/1.png"]
    row = source.row(0)
    assert row.image.shape == (4, 6, 3)
    assert (row.semantic == source.ignore_index).all()


def test_a_draw_repeats_with_its_seed(tmp_path):
    for index in range(5):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / f"{index}.png")
    drawn = [[path.name for path in ImageFolder(str(tmp_path), 20, seed).files] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 20


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no image below"):
        len(ImageFolder(str(tmp_path)))
