"""Every release, in its own layout and encoding, becomes the class indices it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ovsl.__main__ import main
from ovsl.data import Catalogued, sources, truth
from ovsl.data.catalogue import catalogue
from ovsl.prepare import LAYOUTS
from ovsl.vocabulary import Vocabulary
from tests.prepare.trees import TREES, decode, entries, labels, write_image, write_labels


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for a release; what is made of it goes to the folder of all data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVSL_DATA", str(tmp_path / "data"))
    return tmp_path / "release"


def prepare(name: str, release: Path, *options: str) -> Path:
    """Run the command as a user does, in one process."""
    assert main(["prepare", name, "--from", str(release), "--workers", "1", *options]) == 0
    return release.parent / "data" / str(catalogue()[name].files)


def test_every_dataset_has_a_layout_and_a_tree() -> None:
    assert set(LAYOUTS) == set(TREES) == set(catalogue()) - {"toy"}
    for name, layout in LAYOUTS.items():
        assert layout().vocabulary == catalogue()[name].vocabulary
        assert set(layout().parts) == set(catalogue()[name].counts)


@pytest.mark.parametrize("name", TREES)
def test_rows_are_what_the_release_was_made_of(name: str, release: Path) -> None:
    release.mkdir()
    truth = TREES[name](release)
    folder = prepare(name, release)
    published = {file.read_bytes() for file in release.rglob("*") if file.suffix in (".jpg", ".png")}
    for split, images in truth.items():
        stored = pq.read_table(sorted(folder.glob(f"{split}-*.parquet"))).to_pylist()
        names = list(images) if name == "fss_1000" else sorted(images)
        assert [row["image_id"] for row in stored] == names
        source = Catalogued(name, split)
        for index, id in enumerate(names[:20]):
            row = source.row(index)
            np.testing.assert_array_equal(row.semantic, images[id], err_msg=f"{split} {id}")
            assert row.semantic.dtype == images[id].dtype
            encoded = stored[index]["image"]["bytes"]
            assert encoded in published
            np.testing.assert_array_equal(row.image, decode(encoded))
            assert (stored[index]["height"], stored[index]["width"]) == row.image.shape[:2]


def test_large_images_of_the_full_ade20k_are_shrunk_as_published_figures_need(release: Path) -> None:
    top = release / "images/ADE/validation/a"
    for name, size in (("ADE_val_1", (600, 801)), ("ADE_val_2", (900, 530)), ("ADE_val_3", (512, 640))):
        write_image(top / f"{name}.jpg", 0, size)
        wall = np.zeros((*size, 3), np.uint8)
        wall[..., 0], wall[..., 1] = 2978 // 256 * 10, 2978 % 256
        wall[: size[0] // 2] = 0
        Image.fromarray(wall).save(top / f"{name}_seg.png")
    prepare("ade20k_847", release)
    rows = [Catalogued("ade20k_847", "validation").row(index) for index in range(3)]
    assert [row.image.shape[:2] for row in rows] == [
        (512, round(801 / 600 * 512)),
        (round(900 / 530 * 512), 512),
        (512, 640),
    ]
    for row in rows:
        assert row.semantic is not None
        assert row.semantic.shape == row.image.shape[:2]
        assert set(np.unique(row.semantic)) == {0, 65535}


def test_a_split_without_an_image_is_left_out(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TREES["ade20k_847"](release)
    for file in (release / "ADE20K_2021_17_01/images/ADE/training").rglob("ADE_*"):
        file.unlink()
    folder = prepare("ade20k_847", release)
    assert "train is left out: " in capsys.readouterr().out
    assert list(json.loads((folder / "ovsl.json").read_text())["counts"]) == ["validation"]
    assert main(["prepare", "ade20k_847", "--from", str(release), "--splits", "[train]"]) == 2
    assert "no image of it" in capsys.readouterr().err


def test_ade20k_panoptic_pastes_things_over_stuff(release: Path) -> None:
    things = np.array(Vocabulary.load("ade20k_150").things)
    classes = labels(3, range(150), 255)
    top = release / "ADEChallengeData2016"
    write_image(top / "images/validation/ADE_val_1.jpg", 0)
    write_labels(
        top / "annotations/validation/ADE_val_1.png", np.where(classes == 255, 0, classes + 1).astype(np.uint8)
    )
    # Category 1 is `bed` (7), category 100 `flag` (149); both lie over stuff, too.
    instances = np.zeros((24, 32, 3), np.uint8)
    instances[2:6, 3:9] = (1, 1, 0)
    instances[10:14, 3:9] = (1, 2, 0)
    instances[5:8, 20:30] = (100, 3, 0)
    (top / "annotations_instance/validation").mkdir(parents=True)
    Image.fromarray(instances).save(top / "annotations_instance/validation/ADE_val_1.png")
    folder = prepare("ade20k_150", release)
    row = Catalogued("ade20k_150", "validation", panoptic=True).row(0)
    assert row.segments is not None
    np.testing.assert_array_equal(row.semantic, classes)
    found = np.array([-1, *row.segments.classes])[row.segments.ids]
    expected = np.where((classes < 150) & ~np.append(things, [True] * 106)[classes], classes.astype(int), -1)
    expected[instances[..., 0] == 1] = 7
    expected[instances[..., 0] == 100] = 149
    np.testing.assert_array_equal(found, expected)
    beds = [int(row.segments.ids[2, 3]), int(row.segments.ids[10, 3])]
    assert beds[0] != beds[1]
    (listed,) = pq.read_table(sorted(folder.glob("*.parquet")))["segments_info"].to_pylist()
    flag = next(entry for entry in listed if entry["category_id"] == 149)
    assert flag == {**flag, "isthing": True, "iscrowd": False, "bbox": [20, 5, 10, 3], "area": 30}


def test_cityscapes_panoptic_maps_are_those_of_its_own_scripts(release: Path) -> None:
    scripts = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    TREES["cityscapes_19"](release)
    folder = prepare("cityscapes_19", release)
    (release / "own").mkdir()
    scripts.convert2panoptic(str(release / "gtFine"), str(release / "own"), setNames=["val"])
    (official,) = json.loads((release / "own/cityscapes_panoptic_val.json").read_text())["annotations"]
    (ours,) = pq.read_table(sorted(folder.glob("validation-*"))).to_pylist()
    expected = Image.open(release / "own/cityscapes_panoptic_val" / official["file_name"])
    np.testing.assert_array_equal(decode(ours["panoptic"]["bytes"]), np.asarray(expected))
    number = {entry["dataset_id"]: index for index, entry in enumerate(entries("cityscapes_19"))}
    assert any(entry["iscrowd"] for entry in official["segments_info"])
    things = Vocabulary.load("cityscapes_19").things
    assert ours["segments_info"] == [
        {
            **entry,
            "category_id": number[entry["category_id"]],
            "isthing": things[number[entry["category_id"]]],
            "iscrowd": bool(entry["iscrowd"]),
        }
        for entry in official["segments_info"]
    ]


@pytest.mark.parametrize("name", ["coco_panoptic_133", "mapillary_vistas_65"])
def test_panoptic_maps_keep_their_ids_and_crowds(name: str, release: Path) -> None:
    truth = TREES[name](release)
    prepare(name, release)
    source = Catalogued(name, "validation", panoptic=True)
    for index, classes in enumerate(truth["validation"].values()):
        segments = source.row(index).segments
        assert segments is not None
        np.testing.assert_array_equal(np.array([255, *segments.classes])[segments.ids], classes)
        crowd = segments.classes % 5 == 0 if name == "coco_panoptic_133" else np.zeros(len(segments.classes), bool)
        np.testing.assert_array_equal(segments.crowd, crowd)


def test_coco_instances_are_the_masks_that_its_own_code_makes(release: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    TREES["coco_panoptic_133"](release)
    polygon = [2.5, 3.0, 20.25, 4.5, 18.0, 17.5, 6.0, 21.0]
    runs = {"size": [24, 32], "counts": [100, 50, 300, 18, 300]}
    shared = {"image_id": 285, "bbox": [2, 3, 18, 18], "area": 210.5}
    annotations = [
        {**shared, "category_id": 90, "iscrowd": 0, "segmentation": [polygon]},
        {**shared, "category_id": 1, "iscrowd": 1, "segmentation": runs},
    ]
    for part in ("train2017", "val2017"):
        content = {"annotations": annotations if part == "val2017" else []}
        (release / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    prepare("coco_panoptic_133", release)
    source = Catalogued("coco_panoptic_133", "validation", instances=True)
    none, some = (source.row(index).instances for index in range(2))
    assert none is not None
    assert some is not None
    assert len(none.masks) == 0
    expected = [
        coco.decode(coco.merge(coco.frPyObjects([polygon], 24, 32))),
        coco.decode(coco.frPyObjects(runs, 24, 32)),
    ]
    np.testing.assert_array_equal(some.masks, np.array(expected, bool))
    assert some.classes.tolist() == [79, 0]
    assert some.crowd.tolist() == [False, True]


def test_coco_object_painted_of_instance_masks(release: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    write_image(release / "val2017/000000000285.jpg", 0)
    polygons = [[2.5, 3.0, 20.25, 4.5, 18.0, 17.5], [10.0, 2.0, 30.0, 2.0, 30.0, 20.0, 10.0, 20.0]]
    entries = [
        {"image_id": 285, "category_id": category, "bbox": [0, 0, 1, 1], "area": 1, "segmentation": [polygon]}
        for category, polygon in zip((90, 18), polygons, strict=True)
    ]
    (release / "annotations").mkdir()
    content = {"images": [{"id": 285, "file_name": "000000000285.jpg"}], "annotations": entries}
    (release / "annotations/instances_val2017.json").write_text(json.dumps(content))
    prepare("coco_object_81", release, "--painted", "true")
    toothbrush, dog = (coco.decode(coco.frPyObjects([polygon], 24, 32))[..., 0] > 0 for polygon in polygons)
    names = Vocabulary.load("coco_object_81").classes
    expected = np.zeros((24, 32), int)
    expected[toothbrush] = names.index("toothbrush")
    expected[dog] = names.index("dog")
    np.testing.assert_array_equal(Catalogued("coco_object_81", "validation").row(0).semantic, expected)


def test_only_what_is_used_is_decoded(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TREES["coco_panoptic_133"](release)
    for part in ("train2017", "val2017"):
        (release / f"annotations/instances_{part}.json").write_text(json.dumps({"annotations": []}))
    prepare("coco_panoptic_133", release)
    decoded = []

    def watched(decode: Callable[..., object]) -> Callable[..., object]:
        def watch(value: object, what: str, **options: object) -> object:
            decoded.append(what.split(" of ")[0])
            return decode(value, what, **options)

        return watch

    monkeypatch.setattr("ovsl.data.parquet.decode_pixels", watched(sources.decode_pixels))
    monkeypatch.setattr("ovsl.data.truth.decode_image", watched(sources.decode_image))
    instances_of = Mock(wraps=truth.instances_of)
    monkeypatch.setattr("ovsl.data.parquet.instances_of", instances_of)
    plain = Catalogued("coco_panoptic_133", panoptic=False)
    plain.row(0)
    assert decoded == ["image", "mask"]
    assert not instances_of.called
    (row,) = plain.source._group(0)  # type: ignore[attr-defined]
    assert set(row) == {"image_id", "image", "mask"}, "columns that nobody asked for are not even read"
    Catalogued("coco_panoptic_133", panoptic=True, instances=True).row(0)
    assert decoded[2:] == ["image", "mask", "panoptic map"]
    assert instances_of.called


def test_the_augmented_training_set_follows_its_list(release: Path) -> None:
    TREES["pascal_voc_21"](release)
    (release / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("2008_05\n")
    folder = prepare("pascal_voc_21", release)
    assert pq.read_table(sorted(folder.glob("train_aug-*")))["image_id"].to_pylist() == ["2008_05"]


def test_release_two_of_mapillary_gives_its_labels_of_release_one(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = labels(0, range(65), 255)
    write_image(release / "validation/images/a.jpg", 0)
    write_labels(release / "validation/v2.0/labels/a.png", np.full((24, 32), 100), palette=True)
    assert main(["prepare", "mapillary_vistas_65", "--from", str(release)]) == 2
    assert "no validation/labels or validation/v1.2/labels" in capsys.readouterr().err
    write_labels(release / "validation/v1.2/labels/a.png", np.where(classes == 255, 65, classes), palette=True)
    prepare("mapillary_vistas_65", release)
    np.testing.assert_array_equal(Catalogued("mapillary_vistas_65", "validation").row(0).semantic, classes)
