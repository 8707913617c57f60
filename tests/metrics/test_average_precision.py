import time

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from ovsl.errors import InputError
from ovsl.metrics.average_precision import AREAS, THRESHOLDS, MaskAveragePrecision

CLASSES = 3
Image = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def boxes(generator: np.random.Generator, count: int, size: int, largest: int) -> np.ndarray:
    corners = generator.integers(0, size - 4, (count, 2))
    sides = generator.integers(3, largest, (count, 2))
    masks = np.zeros((count, size, size), dtype=bool)
    for mask, (y, x), (h, w) in zip(masks, corners, sides, strict=True):
        mask[y : y + h, x : x + w] = True
    return masks


def image(seed: int, size: int = 180) -> Image:
    """True boxes, shifted copies of some of them, and some inventions."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(0, 8))
    truths, labels = boxes(generator, count, size, 160), generator.integers(0, CLASSES, count)
    shifted = [np.roll(t, generator.integers(-3, 4, 2), (0, 1)) for t in truths for _ in range(2)]
    found = np.concatenate([np.array(shifted, dtype=bool).reshape(-1, size, size), boxes(generator, 4, size, 60)])
    guesses = np.concatenate([labels.repeat(2), generator.integers(0, CLASSES, 4)])
    kept = generator.random(len(found)) < 0.8
    scores = generator.random(len(found))
    crowd = generator.random(count) < 0.2
    arrays = (scores[kept], guesses[kept], found[kept], labels, truths, crowd)
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def reference(images: list[Image], max_detections: int = 100) -> dict[str, np.ndarray]:
    """The rules of the COCO API, detection by detection: AP of each class, threshold and area range."""
    result = {suffix: np.full((CLASSES, len(THRESHOLDS)), np.nan) for suffix in AREAS}
    for suffix, (low, high) in AREAS.items():
        for label in range(CLASSES):
            for number, threshold in enumerate(THRESHOLDS):
                scored, total = [], 0
                for scores, labels, masks, target_labels, target_masks, crowds in images:
                    mine = [(float(s), m.numpy()) for s, c, m in zip(scores, labels, masks, strict=True) if c == label]
                    mine = sorted(mine, key=lambda pair: -pair[0])[:max_detections]
                    truths = []
                    for target, mask, crowd in zip(target_labels, target_masks, crowds, strict=True):
                        if target == label:
                            area = int(mask.sum())
                            truths.append((mask.numpy(), bool(crowd), bool(crowd) or not low <= area <= high))
                    truths.sort(key=lambda truth: truth[2])
                    total += sum(not ignored for *_, ignored in truths)
                    taken = [False] * len(truths)
                    for score, mask in mine:
                        best, chosen = min(threshold, 1 - 1e-10), -1
                        for j, (truth, crowd, ignored) in enumerate(truths):
                            if taken[j] and not crowd:
                                continue
                            if chosen > -1 and not truths[chosen][2] and ignored:
                                break
                            common = (mask & truth).sum()
                            iou = common / (mask.sum() if crowd else mask.sum() + truth.sum() - common)
                            if iou >= best:
                                best, chosen = iou, j
                        if chosen > -1:
                            taken[chosen] = True
                            if not truths[chosen][2]:
                                scored.append((score, True))
                        elif low <= mask.sum() <= high:
                            scored.append((score, False))
                if not total:
                    continue
                scored.sort(key=lambda pair: -pair[0])
                right = np.cumsum([hit for _, hit in scored])
                precision = right / np.arange(1, len(scored) + 1)
                precision = np.maximum.accumulate(precision[::-1])[::-1]
                places = np.searchsorted(right / total, np.linspace(0, 1, 101))
                result[suffix][label, number] = np.append(precision, 0)[np.minimum(places, len(scored))].mean()
    return result


def measure(images: list[Image], **settings: object) -> dict[str, Tensor]:
    metric = MaskAveragePrecision(CLASSES, (True, False, True), **settings)
    for entry in images:
        metric.update(*entry)
    return metric.compute()


@pytest.mark.parametrize("start", [0, 40])
@pytest.mark.parametrize("max_detections", [100, 2])
def test_equals_the_rules_detection_by_detection(start: int, max_detections: int) -> None:
    images = [image(start + i) for i in range(20)]
    values, expected = measure(images, max_detections=max_detections), reference(images, max_detections)
    for suffix, precision in expected.items():
        assert not np.isnan(precision).all()
        assert values[f"AP{suffix}"].item() == pytest.approx(np.nanmean(precision), abs=1e-9)
    np.testing.assert_allclose(values["ap"].numpy(), expected[""].mean(1), atol=1e-9)
    assert values["AP50"].item() == pytest.approx(np.nanmean(expected[""][:, 0]), abs=1e-9)
    assert values["AP75"].item() == pytest.approx(np.nanmean(expected[""][:, 5]), abs=1e-9)
    first, second = values["ap"][[0, 2]].mean().item(), values["ap"][1].item()
    assert values["hAP"].item() == pytest.approx(2 * first * second / (first + second))
    assert 0.05 < values["AP"] < 0.95


def test_the_order_of_images_does_not_matter_even_with_equal_scores() -> None:
    images = [(torch.ones_like(entry[0]), *entry[1:]) for entry in map(image, range(8))]
    forward, backward = measure(images), measure(images[::-1])
    for name in MaskAveragePrecision.scalars:
        assert forward[name].item() == pytest.approx(backward[name].item(), abs=0, rel=0, nan_ok=True)


def _measure_part(rank: int, port: int, results: "multiprocessing.SimpleQueue[dict[str, float]]") -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=3, rank=rank)
    # The last process gets no image at all.
    values = measure([image(i) for i in range(5)][rank::2] if rank < 2 else [])
    results.put({name: values[name].item() for name in ("AP", "AP50", "AP_small", "images")})
    torch.distributed.destroy_process_group()


def test_several_processes_give_the_same_to_the_last_bit() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=_measure_part, args=(rank, 29643, results)) for rank in range(3)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    expected = measure([image(i) for i in range(5)])
    assert all(values == {name: expected[name].item() for name in values} for values in found)
    assert found[0]["images"] == 5


def test_a_class_without_a_detection_counts_as_zero_and_one_without_truth_not_at_all() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :4], mask[1, 5:] = True, True
    metric = MaskAveragePrecision(CLASSES)
    metric.update(torch.tensor([0.5, 0.4]), torch.tensor([0, 2]), mask, torch.tensor([0, 1]), mask)
    values = metric.compute()
    assert values["ap"].tolist()[:2] == [1, 0]
    assert values["ap"][2].isnan()
    assert values["AP"] == 0.5


def test_images_without_detections_or_truth_are_counted() -> None:
    metric = MaskAveragePrecision(CLASSES)
    none, labels = torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    metric.update(torch.zeros(0), labels, none, labels, none)
    metric.update(torch.zeros(0), labels, none, torch.tensor([1]), torch.ones(1, 8, 8, dtype=torch.bool))
    values = metric.compute()
    assert values["images"] == 2
    assert values["AP"] == 0


def test_masks_that_do_not_fit_are_refused_and_not_counted() -> None:
    metric = MaskAveragePrecision(CLASSES)
    scores, labels, masks, *truth = image(3)
    with pytest.raises(InputError, match="size of the target"):
        metric.update(scores, labels, masks[:, :5], *truth)
    with pytest.raises(InputError, match="class outside"):
        metric.update(scores, labels + CLASSES, masks, *truth)
    assert metric.images == 0
    assert not metric.detections


def test_a_photo_with_a_hundred_detections_takes_a_fraction_of_a_second() -> None:
    generator = np.random.default_rng(0)
    masks = torch.from_numpy(boxes(generator, 100, 560, 300))
    labels = torch.from_numpy(generator.integers(0, CLASSES, 100))
    scores = torch.rand(100)
    metric = MaskAveragePrecision(CLASSES)
    started = time.process_time()
    metric.update(scores, labels, masks, labels[:20], masks[:20])
    assert time.process_time() - started < 2
