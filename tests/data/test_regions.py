"""Region maps beside images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsl.data.regions import ColorRegions, RegionFolder, SegmentRegions, renumbered
from ovsl.data.sources import Row
from ovsl.data.toy import ToySource
from ovsl.errors import InputError

MAP = np.array([[0, 7, 7], [300, 300, 0]])


def row(id: str = "a/b") -> Row:
    return Row(id, np.zeros((2, 3, 3), np.uint8), None)


def test_folder_of_grey_and_coloured_maps(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(MAP.astype(np.uint16)).save(tmp_path / "a" / "b.png")
    coloured = np.stack([MAP % 256, MAP // 256, np.zeros_like(MAP)], axis=-1)
    Image.fromarray(coloured.astype(np.uint8)).save(tmp_path / "c.png")
    for id in ("a/b", "c"):
        found = RegionFolder(str(tmp_path))(row(id))
        assert found.dtype == np.int32
        assert found.tolist() == [[0, 1, 1], [2, 2, 0]]


def test_missing_and_misfitting_maps_are_named(tmp_path: Path) -> None:
    regions = RegionFolder(str(tmp_path))
    with pytest.raises(InputError, match=r"There is no region map '.*c\.png': make one for every image"):
        regions(row("c"))
    Image.fromarray(MAP.astype(np.uint8).T.copy()).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"is 2x3, but its image 3x2"):
        regions(row("c"))
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="Cannot decode the region map"):
        regions(row("d"))
    with pytest.raises(InputError, match="There is no panoptic map in 'a/b'"):
        SegmentRegions()(row())


def test_numbers_keep_their_order_and_zero_stays_zero() -> None:
    assert renumbered(np.array([[9, 4], [4, 12]])).tolist() == [[2, 1], [1, 3]]
    assert renumbered(np.array([[9, 0], [4, 12]])).tolist() == [[2, 0], [1, 3]]


def test_regions_of_toy_scenes() -> None:
    scene = ToySource(3, 8).row(5)
    assert scene.segments is not None
    perfect = SegmentRegions()(scene)
    assert len(np.unique(perfect)) == len(scene.segments.classes)
    found = ColorRegions()(scene)
    np.testing.assert_array_equal(found, ColorRegions()(scene), "the same picture gives the same regions")
    # Regions that say more than chance: most of a region's pixels belong to one segment.
    pure = [np.bincount(perfect[found == region]).max() for region in range(1, found.max() + 1)]
    assert sum(pure) > 0.7 * (found > 0).sum() > 0.35 * found.size
    assert found.max() > 2
