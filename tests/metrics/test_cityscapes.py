"""Mask AP by the rules of Cityscapes, against its own scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as reference
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.labels import name2label
from PIL import Image
from torch import Tensor

from ovsl.metrics import CityscapesAveragePrecision, MaskAveragePrecision
from ovsl.metrics.cityscapes import THRESHOLDS

NAMES = ("person", "car", "bicycle", "train")  # no train in the truth
SIZE = 160
Detections = tuple[Tensor, Tensor, Tensor]


def scene(seed: int) -> tuple[np.ndarray, Detections]:
    """An instance map as Cityscapes stores it, and detections: shifted copies of what is there, and inventions."""
    draw = np.random.default_rng(seed)
    ids = np.full((SIZE, SIZE), name2label["road"].id, np.int32)
    ids[: draw.integers(5, 40)] = name2label["unlabeled"].id
    for number in range(draw.integers(2, 12)):
        label = name2label[NAMES[draw.integers(0, 3)]].id
        y, x = draw.integers(0, SIZE - 10, 2)
        h, w = draw.integers(5, 60, 2)
        # Every fifth region or so is a group, which has no number.
        ids[y : y + h, x : x + w] = label if draw.random() < 0.2 else 1000 * label + number
    masks, labels, scores = [], [], []
    for instance in np.unique(ids):
        label = int(instance) // 1000 if instance >= 1000 else int(instance)
        known = [NAMES.index(name) for name in NAMES if name2label[name].id == label]
        for _ in range(draw.integers(0, 3)) if known else ():
            masks.append(np.roll(ids == instance, draw.integers(-4, 5, 2), (0, 1)))
            labels.append(known[0])
    for _ in range(5):
        y, x, h, w = draw.integers(0, 100), draw.integers(0, 100), *draw.integers(3, 60, 2)
        masks.append(np.zeros_like(ids, bool))
        masks[-1][y : y + h, x : x + w] = True
        labels.append(int(draw.integers(0, 4)))
    masks.append(np.zeros_like(ids, bool))
    labels.append(0)
    # Few distinct scores: ties have to be one point of the curve.
    scores = draw.integers(1, 12, len(masks)) / 12
    return ids, (torch.from_numpy(scores), torch.tensor(labels), torch.from_numpy(np.stack(masks)))


def official(scenes: list[tuple[np.ndarray, Detections]], folder: Path) -> np.ndarray:
    """What the scripts compute, `(classes, thresholds)`."""
    reference.args.instLabels = list(NAMES)
    reference.args.quiet = True
    matches = {}
    for number, (ids, (scores, labels, masks)) in enumerate(scenes):
        file = folder / f"truth{number}.png"
        Image.fromarray(ids.astype(np.uint16)).save(file)
        truth = {name: [] for name in NAMES} | instances2dict([str(file)])[str(file)]
        found = {}
        for index, (score, label, mask) in enumerate(zip(scores.tolist(), labels.tolist(), masks, strict=True)):
            place = str(folder / f"{number}-{index}.png")
            Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(place)
            found[place] = {"labelID": name2label[NAMES[label]].id, "conf": score}
        for entries in truth.values():
            for entry in entries:
                entry |= {"medDist": -1.0, "distConf": 0.0}
        instances, predictions = reference.assignGt2Preds(truth, Image.open(file), found, reference.args)
        matches[number] = {"groundTruth": instances, "prediction": predictions}
    return reference.evaluateMatches(matches, reference.args)[0]


def count(metric: MaskAveragePrecision, ids: np.ndarray, found: Detections) -> None:
    instances = [i for i in np.unique(ids) if (i // 1000 if i >= 1000 else i) in [name2label[n].id for n in NAMES]]
    classes = [[name2label[n].id for n in NAMES].index(i // 1000 if i >= 1000 else i) for i in instances]
    masks = torch.from_numpy(np.stack([ids == i for i in instances]) if instances else np.zeros((0, *ids.shape), bool))
    crowd = torch.tensor([bool(i < 1000) for i in instances], dtype=torch.bool)
    void = torch.from_numpy(ids == name2label["unlabeled"].id)
    metric.update(*found, torch.tensor(classes, dtype=torch.int64), masks, crowd, void)


@pytest.mark.parametrize("images", [1, 12])
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_equals_the_official_scripts(seed: int, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # what newer versions of numpy call it
    scenes = [scene(seed + number) for number in range(images)]
    metric = CityscapesAveragePrecision(len(NAMES))
    for ids, found in scenes:
        count(metric, ids, found)
    expected = official(scenes, tmp_path)
    values = metric.compute()
    np.testing.assert_allclose(values["ap"], expected.mean(axis=1), atol=1e-12)
    assert float(values["AP"]) == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert float(values["AP50"]) == pytest.approx(np.nanmean(expected[:, 0]), abs=1e-12)
    assert tuple(reference.args.overlaps) == THRESHOLDS


def test_small_and_void_regions_make_it_another_figure_than_that_of_coco() -> None:
    metrics = CityscapesAveragePrecision(len(NAMES)), MaskAveragePrecision(len(NAMES))
    for number in range(12):
        for metric in metrics:
            count(metric, *scene(number))
    ours, coco = (float(metric.compute()["AP"]) for metric in metrics)
    assert abs(ours - coco) > 0.01
