"""Mask targets and panoptic evaluation, as every query-mask method shares them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from ovsl.data import EvaluationSet, Row, SegmentationDataModule, ToySource
from ovsl.data.sources import InstanceTruth
from ovsl.inference import DensePrediction, Inference, MaskPrediction, Prediction, SlidingWindow, WholeImage
from ovsl.methods.base import SegmentationModule
from ovsl.vocabulary import Vocabulary

QUERIES = 8
IMAGES = 6


class TellingSource(ToySource):
    """Toy scenes whose pictures tell the truth: red is the segment, green the class."""

    def row(self, index: int) -> Row:
        row = ToySource(self.seed, self.length, self.size).row(index)
        assert row.segments is not None
        channels = (row.segments.ids, row.semantic, np.zeros_like(row.semantic))
        image = np.stack(channels, axis=-1).astype(np.uint8)
        return replace(row, image=image, segments=row.segments if self.panoptic else None)


class Oracle(SegmentationModule):
    """Reads the answer from the picture; `mistaken` takes one class for its neighbour."""

    predicts_masks = True
    mistaken: int | None = None
    passes = 0

    def forward(self, images: Tensor, text: Any) -> Prediction:
        self.passes += len(images)
        numbers = torch.arange(1, QUERIES + 1)[:, None, None]
        masks = images[:, :1] == numbers
        labels = (masks * images[:, 1:2]).flatten(2).amax(dim=2).long()
        if self.mistaken is not None:
            labels[labels == self.mistaken] += 1
        found = masks.flatten(2).any(dim=2)
        scores = torch.nn.functional.one_hot(labels, text.num_classes) * found[..., None] * 0.9
        return MaskPrediction(torch.where(masks, 20.0, -20.0), scores, torch.where(found, 0.1, 1.0))


class DenseOracle(Oracle):
    """The same without masks."""

    predicts_masks = False

    def forward(self, images: Tensor, text: Any) -> Prediction:
        self.passes += len(images)
        scores = torch.nn.functional.one_hot(images[:, 1].long(), text.num_classes)
        return DensePrediction(scores.permute(0, 3, 1, 2).float())


class OtherInstances(TellingSource):
    """Says of mask AP that each thing lies elsewhere."""

    has_instances = True

    def row(self, index: int) -> Row:
        row = super().row(index)
        masks = np.roll(row.segments.ids == np.arange(1, 3)[:, None, None], 24, axis=1)
        return replace(row, instances=InstanceTruth(masks, row.segments.classes[:2], row.segments.crowd[:2]))


def evaluate(
    module: SegmentationModule, panoptic: bool = True, kind: type[TellingSource] = TellingSource, **options: Any
) -> dict[str, float | None]:
    source = kind(2, IMAGES, 48, panoptic)
    data = SegmentationDataModule(
        evaluation={"toy": EvaluationSet("toy", "zero_shot", source, source, **options)},
        evaluation_batch_size=4,
        num_workers=0,
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, data, verbose=False)
    (result,) = module.evaluation_results
    assert result.images == IMAGES
    defined = {name: value for name, value in result.metrics.items() if value is not None}
    assert result.intervals.keys() == defined.keys(), "every score has an interval"
    return result.metrics


def test_a_perfect_method_has_panoptic_quality_and_precision_one_in_one_pass(tiny_settings) -> None:
    module = Oracle(clip=tiny_settings, templates="single")
    metrics = evaluate(module)
    ones = ("mIoU", "hIoU", "PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "PQ_seen", "PQ_unseen", "hPQ", "AP", "AP_unseen")
    assert {name: metrics[name] for name in ones} == pytest.approx(dict.fromkeys(ones, 1.0))
    assert module.passes == IMAGES


def test_instances_of_their_own_are_the_truth_of_mask_precision_alone(tiny_settings) -> None:
    metrics = evaluate(Oracle(clip=tiny_settings, templates="single"), kind=OtherInstances)
    assert metrics["PQ"] == 1
    assert metrics["AP"] < 0.5


def test_mask_precision_follows_the_rules_that_a_dataset_names(tiny_settings) -> None:
    metrics = evaluate(Oracle(clip=tiny_settings, templates="single"), average_precision="cityscapes")
    assert metrics["AP"] == 1
    assert "AP_small" not in metrics


def test_a_confused_class_costs_quality_where_it_belongs(tiny_settings) -> None:
    module = Oracle(clip=tiny_settings, templates="single")
    vocabulary = Vocabulary.load("toy", split="zero_shot")
    source = ToySource(2, IMAGES, 48)
    things = {int(label) for i in range(IMAGES) for label in source.row(i).segments.classes if vocabulary.things[label]}
    module.mistaken = next(label for label in sorted(things) if not vocabulary.seen[label])
    metrics = evaluate(module)
    assert metrics["PQ_stuff"] == 1
    assert metrics["PQ_unseen"] < 1
    assert metrics["PQ"] < 1
    assert metrics["AP"] < 1


@pytest.mark.parametrize(
    ("kind", "inference", "panoptic"),
    [
        (DenseOracle, WholeImage(), True),
        (Oracle, SlidingWindow(48, 48), True),
        (Oracle, WholeImage(), False),
    ],
    ids=["dense", "windows", "labels_only"],
)
def test_without_whole_masks_or_panoptic_data_there_is_only_the_label_map(
    tiny_settings, kind: type[Oracle], inference: Inference, panoptic: bool
) -> None:
    module = kind(clip=tiny_settings, templates="single", inference=inference)
    metrics = evaluate(module, panoptic)
    assert not {"PQ", "AP"} & set(metrics)
    assert module.passes == IMAGES
    assert metrics["mIoU"] == 1


class Watcher(DenseOracle):
    """Remembers in which precision it and the text tower ran."""

    def forward(self, images: Tensor, text: Any) -> Prediction:
        self.seen_precisions.add((torch.is_autocast_enabled("cpu"), text.vectors.dtype))
        return super().forward(images, text)


@pytest.mark.parametrize(
    ("asked", "expected"), [({}, (False, torch.float32)), ({"mixed_precision_evaluation": True}, (True, torch.float32))]
)
def test_tests_run_in_float32_unless_asked_otherwise(tiny_settings, asked: dict, expected: tuple) -> None:
    module = Watcher(clip=tiny_settings, templates="single", **asked)
    module.seen_precisions = set()
    source = TellingSource(2, 2, 48)
    data = SegmentationDataModule(evaluation={"toy": EvaluationSet("toy", None, source, source)}, num_workers=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", **quiet)
    with torch.autocast("cpu", torch.bfloat16):  # as in training: what is cached then serves the test too
        assert module.text_classifier(Vocabulary.load("toy")).vectors.dtype == torch.float32
    for verb in (trainer.test, trainer.validate):
        verb(module, data, verbose=False)
    assert module.seen_precisions == {expected}


@pytest.fixture
def module(tiny_settings) -> SegmentationModule:
    module = Oracle(clip=tiny_settings, templates="single")
    words = Vocabulary.from_words(["cat", "dog", "sky", "road"])
    module.training_vocabulary = replace(words, seen=(True, False, True, True))
    return module


def test_mask_targets_are_segments_of_seen_classes(module) -> None:
    ids = torch.tensor([[[1, 1, 2, 0], [3, 3, 2, 0]], [[0, 0, 0, 1], [0, 0, 0, 1]]], dtype=torch.int32)
    # Image 0: two cats, a dog, and sky that the crop cut away; image 1: road.
    classes = [torch.tensor([0, 0, 1, 2]), torch.tensor([3])]
    batch = {"segment_ids": ids, "segment_classes": classes, "semantic": torch.zeros_like(ids)}
    targets = module.training_classes.masks(batch)
    assert targets.labels.tolist() == [0, 0, 2]
    assert targets.counts == (2, 1)
    assert torch.equal(targets.masks, torch.stack([ids[0] == 1, ids[0] == 2, ids[1] == 1]))
    kept = module.training_classes.masks(batch, keep_empty=True)
    assert kept.labels.tolist() == [0, 0, 1, 2]
    assert kept.counts == (3, 1)
    assert not kept.masks[2].any()


def test_without_segments_each_class_of_an_image_is_one_mask(module) -> None:
    semantic = torch.tensor([[[0, 1, 2, 255]], [[3, 3, 0, 0]]])
    targets = module.training_classes.masks({"semantic": semantic})
    assert targets.labels.tolist() == [0, 1, 0, 2]
    assert targets.counts == (2, 2)
    assert targets.masks[:, 0].tolist() == [
        [True, False, False, False],
        [False, False, True, False],
        [False, False, True, True],
        [True, True, False, False],
    ]
