"""Datasets by name: the facts hold together, and a named dataset is what the same sources written out are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ovsl.data import (
    Catalogued,
    EvaluationSet,
    EvaluationTransform,
    ParquetSource,
    SegmentationDataModule,
    ToySource,
    TrainTransform,
)
from ovsl.data.catalogue import CatalogueEntry, catalogue
from ovsl.data.parquet import HubSource
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary
from tests.data.shards import png, write_shard, write_shards


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all data, empty; nothing lies in the current folder either."""
    monkeypatch.setenv("OVSL_DATA", str(tmp_path / "stored"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "stored"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `<owner>/<name>` for each repository, in place of the Hub."""

    def builder(source: HubSource) -> object:
        import datasets

        files = [str(file) for file in sorted((tmp_path / "hub" / source.repo).glob(f"{source.split}-*.parquet"))]
        return datasets.load_dataset_builder("parquet", data_files={source.split: files})

    monkeypatch.setattr(HubSource, "_builder", builder)
    return tmp_path / "hub"


def write_masks(file: Path, values: list[int], dtype: type = np.uint8) -> None:
    """Rows of 8x8 pixels, each with a mask of the values."""
    masks = [np.resize(np.array(values, dtype), (8, 8)) for _ in range(3)]
    rows = [{"image": {"bytes": png(np.zeros((8, 8, 3), np.uint8))}, "mask": {"bytes": png(mask)}} for mask in masks]
    write_shard(file, rows)


@pytest.mark.parametrize("known", catalogue().values(), ids=lambda known: known.name)
def test_the_facts_of_an_entry_agree_with_its_vocabulary(known: CatalogueEntry) -> None:
    vocabulary = Vocabulary.load(known.vocabulary)
    assert known.ignore_index == vocabulary.ignore_index
    assert {"train", "validation", "test"} <= set(known.available_splits)
    assert known.panoptic == "never" or vocabulary.things is not None
    assert (known.files is None) == (known.generated is not None)
    EvaluationTransform(**(known.evaluation_size or {}))
    if known.hub is not None:
        assert set(known.hub.splits) <= set(known.available_splits)


def test_former_names_are_free_and_used_once() -> None:
    former = [known.formerly for known in catalogue().values() if known.formerly]
    assert len(set(former)) == len(former)
    assert not set(former) & set(catalogue())


def test_a_local_dataset_is_its_parquet_files_in_the_same_order(stored: Path) -> None:
    write_shards(stored / "camvid")
    named, written = Catalogued("camvid"), ParquetSource("camvid", "train", id_column="image_id")
    assert len(named) == len(written) == 87
    for epoch in range(2):
        np.testing.assert_array_equal(named.order(3, epoch), written.order(3, epoch))
    for index in (0, 41, 86):
        ours, theirs = named.row(index), written.row(index)
        assert ours.id == theirs.id
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.semantic, theirs.semantic)
    assert (named.name, named.label_transform, named.ignore_index) == (
        written.name,
        written.label_transform,
        written.ignore_index,
    )


def test_training_batches_of_a_name_are_those_of_its_files(stored: Path) -> None:
    write_shards(stored / "camvid")
    batches = []
    for source in ("camvid", ParquetSource("camvid", "train", id_column="image_id")):
        data = SegmentationDataModule(source, "camvid_11", train_transform=TrainTransform(16), batch_size=8)
        data.load_state_dict({"position": 40, "batches": 5})
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == len(batches[1]) == 87 // 8
    for ours, theirs in zip(*batches, strict=True):
        assert ours["id"] == theirs["id"]
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["semantic"], theirs["semantic"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ade20k",), "is called 'ade20k_150'"),
        (("coco_stuff",), "did you mean 'coco_stuff_171'"),
        (("pascal_voc_20", "minival"), "use one of train, train_aug, validation, test"),
        (("pascal_voc_20", "train", True), "has no panoptic maps"),
    ],
)
def test_an_unknown_name_gets_the_known_ones(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Catalogued(*arguments)


def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(stored: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"no folder 'pascal_context_59' .*stored.*no repository.*ovsl prepare pascal_context_59.*OVSL_DATA",
    ):
        len(Catalogued("pascal_context_59"))
    # Making it is enough: a run that never reads a dataset does not need it.
    assert Catalogued("pascal_context_59", "validation").panoptic is False


def test_the_hub_stands_in_for_missing_files_after_a_look_at_its_labels(stored: Path, hub: Path) -> None:
    write_masks(hub / "jxie/pascal-voc-2012/val-00000.parquet", [0, 1, 20, 255])
    found = Catalogued("pascal_voc_20", "test")
    assert found.name == "Hub dataset 'jxie/pascal-voc-2012' (val)"
    assert len(found) == 3
    assert found.label_transform == "reduce_zero_label"
    with pytest.raises(InputError, match=r"no repository.*is known to hold it"):
        len(Catalogued("pascal_voc_20", "train"))
    # Local files win, also when they hold less.
    write_shards(stored / "pascal_voc_20")
    assert "Parquet files" in Catalogued("pascal_voc_20", "validation").name


@pytest.mark.parametrize(
    ("repo", "file", "name", "values", "message"),
    [
        ("jxie/pascal-voc-2012", "val", "pascal_voc_21", [0, 30], "the label value 30"),
        # The 171 train ids in place of the 182 raw ones: 11 is unused there.
        ("GATE-engine/COCOStuff164K", "val", "coco_stuff_171", [10, 11, 12], "the label value 11"),
        ("jxie/pascal-voc-2012", "val", "pascal_voc_20", [0, 255], "has no label"),
    ],
)
def test_a_repository_whose_labels_are_not_as_expected_is_refused(
    stored: Path, hub: Path, repo: str, file: str, name: str, values: list[int], message: str
) -> None:
    write_masks(hub / repo / f"{file}-00000.parquet", values)
    with pytest.raises(InputError, match=rf"cannot be used .*{message}"):
        len(Catalogued(name, "validation"))


def test_names_stand_for_sources_vocabulary_and_sizes() -> None:
    data = SegmentationDataModule(
        train="pascal_voc_20/train_aug",
        evaluation={"ade20k_150": EvaluationSet(published={"mIoU": 27.6}), "toy": EvaluationSet(split="zero_shot")},
    )
    assert isinstance(data.train, Catalogued)
    assert (data.train.entry.name, data.train.split, data.vocabulary) == ("pascal_voc_20", "train_aug", "pascal_voc_20")
    dataset = data.evaluation["ade20k_150"]
    assert isinstance(dataset.validation, Catalogued)
    assert isinstance(dataset.test, Catalogued)
    assert (dataset.validation.split, dataset.test.split) == ("validation", "test")
    assert dataset.transform == EvaluationTransform(short_side=512, max_size=2048)
    assert not dataset.test.panoptic
    toy = data.evaluation["toy"].test
    assert isinstance(toy, Catalogued)
    written = ToySource(seed=2, length=200)
    assert (len(toy), toy.panoptic) == (200, True)
    np.testing.assert_array_equal(toy.row(7).image, written.row(7).image)
    assert data.evaluation_vocabularies["toy"].unseen_indices


def test_panoptic_maps_are_read_where_they_are_asked_for_and_exist() -> None:
    names = ("ade20k_150", "pascal_context_59", "coco_panoptic_133")
    for wanted, expected in ((None, [False, False, True]), (True, [True, False, True]), (False, [False] * 3)):
        data = SegmentationDataModule(evaluation={name: EvaluationSet() for name in names}, panoptic=wanted)
        assert [dataset.test.panoptic for dataset in data.evaluation.values()] == expected


def test_what_is_written_out_wins_and_needs_no_catalogue() -> None:
    own = EvaluationSet("toy", test=ToySource(5, length=3))
    transform = EvaluationTransform(short_side=40)
    # Also under a name that scores had before there was a catalogue.
    data = SegmentationDataModule(
        evaluation={"ade20k": own, "toy": own, "camvid": EvaluationSet(transform=transform)},
        evaluation_transform=EvaluationTransform(short_side=64),
    )
    assert data.evaluation["ade20k"].test is own.test
    assert data.evaluation["ade20k"].validation is None
    assert data.evaluation["toy"].test is own.test
    assert data.evaluation["toy"].transform == EvaluationTransform(short_side=64)
    assert data.evaluation["camvid"].transform == transform


@pytest.mark.parametrize("name", ["ade20k", "my photos"])
def test_an_evaluation_set_that_nothing_is_known_of(name: str) -> None:
    with pytest.raises(InputError, match=rf"no dataset '{name}'.*own needs a vocabulary and sources"):
        SegmentationDataModule(evaluation={name: EvaluationSet()})


def test_a_published_figure_with_a_typo() -> None:
    with pytest.raises(InputError, match=r"no figure 'mIoU_unsen'.*did you mean 'mIoU_unseen'"):
        EvaluationSet(published={"mIoU_unsen": 3.0})
