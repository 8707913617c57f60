"""The data module under a trainer: resume, workers, evaluation, errors, prediction, shipped configurations."""

import logging
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from ovsl.data import (
    EvaluationSet,
    EvaluationTransform,
    ParquetSource,
    PredictionData,
    SegmentationDataModule,
    ToySource,
    TrainTransform,
)
from ovsl.data.image_files import find_images
from ovsl.errors import InputError
from tests.data.recorder import Recorder, trainer
from tests.data.shards import TRAIN, VALIDATION, record, write_shard, write_shards

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


def make(train, workers: int = 0, **options) -> SegmentationDataModule:
    vocabulary = "toy" if isinstance(train, ToySource) else "camvid_11"
    defaults = {
        "vocabulary": vocabulary,
        "train_transform": TrainTransform(crop_size=16, scale=(0.8, 1.5), photometric=True),
        "batch_size": 8,
        "num_workers": workers,
        "seed": 3,
    }
    return SegmentationDataModule(train=train, **{**defaults, **options})


def sources(folder: Path) -> dict:
    return {
        "stream": lambda: ParquetSource(str(folder), id_column="image_id", interleave=3),
        "map": lambda: ToySource(0, length=87, size=32),
    }


@pytest.fixture(scope="module")
def unbroken(folder) -> dict:
    """What 12 steps saw in one go, without workers; epochs of the trainer have 5 steps."""
    seen = {}
    for name, source in sources(folder).items():
        module = Recorder()
        trainer(12, limit_train_batches=5).fit(module, make(source()))
        seen[name] = module.trained
    return seen


@pytest.mark.parametrize("kind", ["stream", "map"])
@pytest.mark.parametrize(
    ("workers", "stop", "early"), [(0, 7, False), (0, 5, True), (0, 10, False), (2, 7, True), (2, 7, False)]
)
def test_resumed_run_sees_what_the_unbroken_one_saw(folder, tmp_path, unbroken, kind, workers, stop, early):
    options = {"limit_train_batches": 5, "max_epochs": 9 if early else None}
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    first, second = Recorder(early), Recorder(early)
    broken = trainer(stop + 1, callbacks=[saver], enable_checkpointing=True, **options)
    broken.fit(first, make(sources(folder)[kind](), workers))
    trainer(12, **options).fit(second, make(sources(folder)[kind](), workers), ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert first.trained == unbroken[kind][: stop + 1]
    assert second.trained == unbroken[kind][stop:]


def test_accumulated_gradients_do_not_move_the_position(folder, tmp_path, unbroken):
    options = {"limit_train_batches": 5, "accumulate_grad_batches": 2}
    first, second = Recorder(), Recorder()
    # Epochs of 5 batches make 3 optimiser steps: 2 + 2 + 1 batches.
    halted = trainer(4, **options)
    halted.fit(first, make(sources(folder)["stream"]()))
    halted.save_checkpoint(tmp_path / "last.ckpt")
    trainer(7, **options).fit(second, make(sources(folder)["stream"]()), ckpt_path=tmp_path / "last.ckpt")
    seen = [batch[1:] for batch in first.trained + second.trained]
    assert seen == [batch[1:] for batch in unbroken["stream"]][: len(seen)]
    assert len(seen) == 12


@pytest.fixture(scope="module")
def sized(tmp_path_factory) -> Path:
    """83 rows with their sizes, of which every third or so is a portrait; the id says which."""
    folder = tmp_path_factory.mktemp("sized")
    rows = []
    for number in range(83):
        height, width = (32, 24) if number % 3 == 0 or number % 7 == 0 else (24, 32)
        row = record("train", number, (height, width)) | {"height": height, "width": width}
        rows.append(row | {"image_id": f"{number}-{'portrait' if height > width else 'landscape'}"})
    write_shard(folder / "train.parquet", rows)
    return folder


def test_batches_of_one_orientation_and_a_resume_that_knows_it(sized, tmp_path):
    def data(grouped: bool = True) -> SegmentationDataModule:
        source = ParquetSource(str(sized), id_column="image_id", interleave=3)
        return make(source, batch_size=4, group_by_orientation=grouped)

    def kinds(batch: list[str]) -> set[str]:
        return {id.partition("-")[2] for id in batch}

    whole, plain, first, second = (Recorder() for _ in range(4))
    trainer(60).fit(whole, data())
    batches = [ids for _, ids, _ in whole.trained]
    ids = [id for batch in batches for id in batch]
    assert set(Counter(ids[: 83 * 2]).values()) == {2}, "every row once in each pass"
    # At the end of each of three passes the queues may leave batches of both.
    assert sum(len(kinds(batch)) == 1 for batch in batches) >= 60 - 2 * 3
    trainer(10).fit(plain, data(grouped=False))
    assert sum(len(kinds(batch)) == 1 for _, batch, _ in plain.trained) < 5
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=23, save_top_k=-1)
    trainer(24, callbacks=[saver], enable_checkpointing=True).fit(first, data())
    trainer(60).fit(second, data(), ckpt_path=tmp_path / "step=23.ckpt")
    assert second.trained == whole.trained[23:]


def test_grouping_needs_the_sizes_of_images(folder):
    with pytest.raises(InputError, match="no column 'width'"):
        make(ParquetSource(str(folder)), group_by_orientation=True).train_dataloader()
    with pytest.raises(InputError, match="does not tell the sizes"):
        make(ToySource(0, 32, 32), group_by_orientation=True).train_dataloader()


def test_position_survives_another_batch_size(folder, tmp_path):
    first, second = Recorder(), Recorder()
    halted = trainer(3)
    halted.fit(first, make(sources(folder)["map"](), batch_size=8))
    halted.save_checkpoint(tmp_path / "last.ckpt")
    trainer(9).fit(second, make(sources(folder)["map"](), batch_size=4), ckpt_path=tmp_path / "last.ckpt")
    whole = Recorder()
    trainer(6).fit(whole, make(sources(folder)["map"](), batch_size=8))
    ids = [id for _, batch, _ in first.trained + second.trained for id in batch]
    assert ids == [id for _, batch, _ in whole.trained for id in batch]


def test_two_passes_hold_every_row_twice_and_augment_it_anew(folder):
    module = Recorder()
    trainer(2 * sum(TRAIN)).fit(module, make(sources(folder)["stream"](), batch_size=1))
    ids = [batch[0] for _, batch, _ in module.trained]
    assert len(set(ids[: sum(TRAIN)])) == len(set(ids[sum(TRAIN) :])) == sum(TRAIN)
    digests: dict[str, set] = {}
    for _, (id,), digest in module.trained:
        digests.setdefault(id, set()).add(digest)
    assert all(len(pair) == 2 for pair in digests.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_several_evaluation_sets_each_row_once_with_its_own_vocabulary(folder, workers):
    def validation():
        return ParquetSource(str(folder), "validation", id_column="image_id")

    data = make(
        None,
        workers,
        vocabulary=None,
        evaluation={
            "road": EvaluationSet("camvid_11", "demo_zero_shot_8_3", validation=validation(), test=validation()),
            "scenes": EvaluationSet("toy", validation=ToySource(1, length=5, size=32)),
        },
        evaluation_transform=EvaluationTransform(short_side=48),
        evaluation_batch_size=2,
    )
    vocabularies = data.evaluation_vocabularies
    assert list(vocabularies) == ["road", "scenes"]
    assert vocabularies["road"].unseen_indices
    assert vocabularies["scenes"].seen is None
    road, toy = data.val_dataloader()
    batches = list(road)
    assert Counter(id for batch in batches for id in batch["id"]) == Counter(
        f"validation-{number:03d}" for number in range(sum(VALIDATION))
    )
    batch = batches[0]
    assert batch["image"][0].shape == (3, 48, 64)
    assert batch["image"][0].dtype == torch.uint8
    assert batch["semantic"][0].shape == (24, 32) == batch["original_size"][0]
    assert batch["semantic"][0].dtype == torch.int64
    assert sum(len(batch["id"]) for batch in toy) == 5
    with pytest.raises(InputError, match="'scenes' has no test source"):
        data.test_dataloader()


@pytest.mark.parametrize("ignore_unseen", [True, False])
def test_unseen_classes_are_hidden_from_training_only(folder, ignore_unseen):
    validation = EvaluationSet("camvid_11", validation=ParquetSource(str(folder), "validation"))
    data = make(
        ParquetSource(str(folder)),
        split="demo_zero_shot_8_3",
        ignore_unseen=ignore_unseen,
        evaluation={"road": validation},
        train_transform=TrainTransform(crop_size=24, scale=(1, 1)),
    )
    unseen = set(data.training_vocabulary.unseen_indices)
    assert unseen
    trained = set(next(iter(data.train_dataloader()))["semantic"].unique().tolist())
    assert trained.isdisjoint(unseen) == ignore_unseen
    assert unseen <= set(next(iter(data.val_dataloader()[0]))["semantic"][0].unique().tolist())


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """20 rows, of which 3 and 11 cannot be decoded."""
    folder = tmp_path_factory.mktemp("broken")
    rows = [record("train", number) for number in range(20)]
    for number in (3, 11):
        rows[number]["image"]["bytes"] = rows[number]["image"]["bytes"][:100]
    write_shard(folder / "train-00000.parquet", rows)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_stop_the_run_or_are_skipped_and_counted(broken, workers, caplog):
    def data(on_error):
        source = ParquetSource(str(broken), id_column="image_id")
        evaluation = {"road": EvaluationSet("camvid_11", validation=source)}
        return make(source, workers, batch_size=5, evaluation=evaluation, on_error=on_error)

    with pytest.raises(InputError, match=r"row (3|11) \('train-0(03|11)'\)") as caught:
        list(data("error").train_dataloader())
    assert "Traceback" not in str(caught.value)
    skipping = data("skip")
    with caplog.at_level(logging.WARNING):
        ids = [id for batch in skipping.train_dataloader() for id in batch["id"]]
        skipping.teardown("fit")
    assert len(ids) == 20
    assert "train-003" not in ids
    order = ParquetSource(str(broken)).order(3, 0).tolist()
    after = order[order.index(3) + 1]
    assert ids[order.index(3)] == f"train-{after:03d}", "replaced by the next in the order"
    assert skipping.skipped == 2
    assert "Skipped 2" in caplog.text
    evaluated = Recorder()
    trainer(1, limit_val_batches=1.0).validate(evaluated, data("skip"), verbose=False)
    assert sorted(evaluated.validated) == [f"train-{number:03d}" for number in range(20) if number not in (3, 11)]


def test_too_few_rows_and_no_training_data_are_named(folder):
    with pytest.raises(InputError, match=r"87 rows, fewer than one global batch of 100"):
        make(ParquetSource(str(folder)), batch_size=100).train_dataloader()
    with pytest.raises(InputError, match="no training data"):
        make(None, vocabulary=None).train_dataloader()


def picture(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


class Predictor(L.LightningModule):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return list(zip(batch["id"], batch["path"], batch["original_size"], batch["image"], strict=True))


def test_prediction_from_files_and_folders(tmp_path):
    for name in ("a/10.png", "a/2.jpg", "a/sub/1.bmp", "a/note.png.txt", "single.webp"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            picture(tmp_path / name)
    images = [str(tmp_path / "single.webp"), str(tmp_path / "a")]
    data = PredictionData(images, ["road", "car, automobile"], EvaluationTransform(short_side=12), num_workers=2)
    assert data.evaluation_vocabularies["images"].synonyms[1] == ("car", "automobile")
    predicted = trainer(1).predict(Predictor(), data)
    rows = [row for batch in predicted for row in batch]
    assert sorted(row[0] for row in rows) == ["10", "2", "single", "sub/1"]
    for _, path, size, image in rows:
        assert Path(path).is_file()
        assert size == (6, 8)
        assert image.shape == (3, 12, 16)
    assert find_images(images)[1] == ["single", "2", "10", "sub/1"]


def test_prediction_over_the_test_sources(folder):
    source = ParquetSource(str(folder), "validation", id_column="image_id")
    data = make(None, 2, vocabulary=None, evaluation={"road": EvaluationSet("camvid_11", test=source)})

    class Ids(L.LightningModule):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return batch["id"]

    ids = [id for batch in trainer(1).predict(Ids(), data) for id in batch]
    assert sorted(ids) == [f"validation-{number:03d}" for number in range(sum(VALIDATION))]


def test_images_of_one_name_get_different_ids(tmp_path):
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        picture(tmp_path / name)
    _, ids = find_images([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(set(ids)) == 3


def test_prediction_input_that_cannot_be_used(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"bad\.jpg"):
        list(PredictionData([str(tmp_path)], ["road"]).predict_dataloader()[0])
    with pytest.raises(InputError, match=r"no image file or folder .*missing"):
        PredictionData([str(tmp_path / "missing.jpg")], ["road"]).predict_dataloader()
    with pytest.raises(InputError, match="vocabulary is empty"):
        PredictionData([str(tmp_path)], []).predict_dataloader()


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_build_a_data_module(config, tmp_path, monkeypatch):
    # One of them is about photos of the user's own, in the folder that the user is in.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/classes.txt").write_text("road\nsky\n")
    monkeypatch.chdir(tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object(yaml.safe_load(config.read_text()))).data
    assert data.training_vocabulary is not None
    assert data.evaluation_vocabularies
    if config.stem == "toy":
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (16, 3, 128, 128)
        assert batch["image"].is_contiguous()
        assert (batch["image"].dtype, batch["semantic"].dtype) == (torch.uint8, torch.uint8)
        assert data.on_after_batch_transfer(batch, 0)["semantic"].dtype == torch.int64
        assert [len(loader) for loader in data.val_dataloader() + data.test_dataloader()] == [100, 200]
