"""Region maps beside images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovsl.data import (
    ColorRegions,
    EvaluationSet,
    ParquetSource,
    PredictionData,
    RegionFolder,
    RegionMaps,
    Row,
    SegmentationDataModule,
    SegmentRegions,
    ToySource,
)
from ovsl.data.regions import renumbered
from ovsl.errors import InputError
from tests.data.shards import png, record, write_shard

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


def shard(folder: Path, with_map: int = 2) -> Path:
    """Two rows, the first `with_map` of which have a region map."""
    maps = [np.full((24, 32), 5, np.uint8), np.eye(24, 32, dtype=np.uint8) * 9]
    rows = []
    for number, regions in enumerate(maps):
        encoded = {"bytes": png(regions), "path": None} if number < with_map else None
        rows.append(record("validation", number) | {"regions": encoded})
    write_shard(folder / "validation.parquet", rows)
    return folder


def source(folder: Path, column: str | None) -> ParquetSource:
    return ParquetSource(str(folder), "validation", id_column="image_id", regions_column=column)


def batches(data: SegmentationDataModule) -> list[dict]:
    (loader,) = data.test_dataloader()
    return list(loader)


def test_a_column_of_the_source_reaches_the_batch_at_the_original_size(tmp_path: Path) -> None:
    dataset = EvaluationSet("camvid_11", test=source(shard(tmp_path), "regions"))
    first, second = batches(SegmentationDataModule(evaluation={"photos": dataset}, num_workers=0))
    assert first["regions"][0].tolist() == np.ones((24, 32), int).tolist()
    assert second["regions"][0].tolist() == np.eye(24, 32, dtype=int).tolist()
    assert second["regions"][0].dtype == torch.int32


def test_maps_of_a_dataset_win_over_those_of_the_data_and_of_the_source(tmp_path: Path) -> None:
    class Rows(RegionMaps):
        def __init__(self, value: int) -> None:
            self.value = value

        def __call__(self, row: Row) -> np.ndarray:
            return np.full(row.image.shape[:2], self.value)

    photos = source(shard(tmp_path), "regions")
    own = EvaluationSet("camvid_11", test=photos, regions=Rows(3))
    for dataset, expected in ((own, 3), (EvaluationSet("camvid_11", test=photos), 7)):
        data = SegmentationDataModule(evaluation={"photos": dataset}, regions=Rows(7), num_workers=0)
        assert batches(data)[0]["regions"][0].unique().tolist() == [expected]
    without = EvaluationSet("camvid_11", test=source(tmp_path, None))
    assert "regions" not in batches(SegmentationDataModule(evaluation={"photos": without}, num_workers=0))[0]


def test_one_folder_pattern_serves_all_datasets(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        for id in ("validation-000", "validation-001"):
            picture = np.full((24, 32), 5, np.uint8)
            picture[0, 0] = 0 if number else 3
            Image.fromarray(picture).save(tmp_path / name / f"{id}.png")
    sets = {name: EvaluationSet("camvid_11", test=source(shard(tmp_path), None)) for name in ("first", "second")}
    maps = RegionFolder(str(tmp_path / "{dataset}"))
    data = SegmentationDataModule(evaluation=sets, regions=maps, num_workers=0)
    found = [next(iter(loader))["regions"][0] for loader in data.test_dataloader()]
    assert [(int(one[0, 0]), int(one[1, 1])) for one in found] == [(1, 2), (0, 1)]


def test_a_row_without_a_map_is_named(tmp_path: Path) -> None:
    dataset = EvaluationSet("camvid_11", test=source(shard(tmp_path, with_map=1), "regions"))
    with pytest.raises(InputError, match=r"There is no region map in row 1 \('validation-001'\)"):
        batches(SegmentationDataModule(evaluation={"photos": dataset}, num_workers=0))


def test_photos_to_label_have_region_maps_too(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "photo.jpg")
    Image.fromarray(MAP.astype(np.uint16)).save(tmp_path / "photo.png")
    data = PredictionData(str(tmp_path / "photo.jpg"), ["sky", "sea"], regions=RegionFolder(str(tmp_path)))
    (batch,) = data.predict_dataloader()[0]
    assert batch["regions"][0].tolist() == [[0, 1, 1], [2, 2, 0]]
