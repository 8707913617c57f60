import contextlib
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ovsl.detections import AveragePrecision, Detections, precision_scores
from ovsl.errors import InputError
from ovsl.metrics import CityscapesAveragePrecision
from ovsl.metrics.average_precision import AREAS, THRESHOLDS, MaskAveragePrecision, match_detections

CLASSES = 4
SEEN = (True, False, True, True)
Image = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def boxes(generator: np.random.Generator, count: int, size: int, largest: int) -> np.ndarray:
    corners = generator.integers(0, size - 4, (count, 2))
    sides = generator.integers(3, largest, (count, 2))
    masks = np.zeros((count, size, size), dtype=bool)
    for mask, (y, x), (h, w) in zip(masks, corners, sides, strict=True):
        mask[y : y + h, x : x + w] = True
    return masks


def image(seed: int, size: int = 180) -> Image:
    """True boxes, shifted copies of some of them, and some inventions; the last class has no truth."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(0, 8))
    truths, labels = boxes(generator, count, size, 160), generator.integers(0, CLASSES - 1, count)
    shifted = [np.roll(t, generator.integers(-3, 4, 2), (0, 1)) for t in truths for _ in range(2)]
    found = np.concatenate([np.array(shifted, dtype=bool).reshape(-1, size, size), boxes(generator, 4, size, 60)])
    guesses = np.concatenate([labels.repeat(2), generator.integers(0, CLASSES, 4)])
    kept = generator.random(len(found)) < 0.8
    scores = generator.random(len(found))
    crowd = generator.random(count) < 0.2
    arrays = (scores[kept], guesses[kept], found[kept], labels, truths, crowd)
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def crowded(seed: int, detections: int = 130) -> Image:
    """An image with more detections of one class than count, only some of them on a true mask."""
    generator = np.random.default_rng(seed)
    truths = boxes(generator, 40, 180, 30)
    found = np.concatenate([np.roll(truths, 1, 1), boxes(generator, detections - 40, 180, 30)])
    scores, labels = generator.random(detections), np.zeros(detections, dtype=np.int64)
    arrays = (scores, labels, found, np.zeros(40, dtype=np.int64), truths, np.zeros(40, dtype=bool))
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def without_truth(entry: Image) -> Image:
    scores, labels, masks, *truth = entry
    return scores, labels, masks, *(values[:0] for values in truth)  # type: ignore[return-value]


def without_detections(entry: Image) -> Image:
    scores, labels, masks, *truth = entry
    return scores[:0], labels[:0], masks[:0], *truth  # type: ignore[return-value]


def random_images(start: int) -> list[Image]:
    images = [image(start + number) for number in range(20)]
    empty = without_detections(without_truth(images[0]))
    return [*images, without_truth(image(start + 20)), without_detections(image(start + 21)), empty, crowded(start)]


def rle(mask: Tensor) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def reference(images: list[Image], max_detections: int = 100, classes: int = CLASSES) -> np.ndarray:
    """AP by `pycocotools`: each threshold, class and area range (in the order of `AREAS`), NaN without truth."""
    truth, found = COCO(), []
    truth.dataset = {
        "info": {},
        "images": [
            {"id": number, "height": entry[2].shape[1], "width": entry[2].shape[2]}
            for number, entry in enumerate(images)
        ],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": [],
    }
    for number, (scores, labels, masks, target_labels, target_masks, crowds) in enumerate(images):
        for score, label, mask in zip(scores.tolist(), labels.tolist(), masks, strict=True):
            entry = {"image_id": number, "category_id": label}
            found.append(entry | {"segmentation": rle(mask), "score": score})
        for label, mask, crowd in zip(target_labels.tolist(), target_masks, crowds.tolist(), strict=True):
            entry = {"image_id": number, "category_id": label, "id": len(truth.dataset["annotations"]) + 1}
            sizes = {"segmentation": rle(mask), "area": int(mask.sum()), "iscrowd": int(crowd)}
            truth.dataset["annotations"].append(entry | sizes)
    with contextlib.redirect_stdout(None):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]
    return np.where(precision < 0, np.nan, precision).mean(1)


def measure(images: list[Image], **settings: Any) -> dict[str, Tensor]:
    metric = MaskAveragePrecision(CLASSES, SEEN, **settings)
    for entry in images:
        metric.update(*entry)
    return metric.compute()


@pytest.mark.parametrize("start", [0, 100, 200])
@pytest.mark.parametrize("max_detections", [100, 2])
def test_equals_pycocotools(start: int, max_detections: int) -> None:
    images = random_images(start)
    values, expected = measure(images, max_detections=max_detections), reference(images, max_detections)
    assert np.isnan(expected[:, -1]).all(), "a class without truth"
    for area, suffix in enumerate(AREAS):
        assert values[f"AP{suffix}"].item() == pytest.approx(np.nanmean(expected[..., area]), abs=1e-9)
    per_class = expected[..., 0].mean(0)
    np.testing.assert_allclose(values["ap"].numpy(), per_class, atol=1e-9)
    assert values["AP50"].item() == pytest.approx(np.nanmean(expected[0, :, 0]), abs=1e-9)
    assert values["AP75"].item() == pytest.approx(np.nanmean(expected[5, :, 0]), abs=1e-9)
    first, second = np.nanmean(per_class[list(SEEN)]), np.nanmean(per_class[~np.array(SEEN)])
    assert values["hAP"].item() == pytest.approx(2 * first * second / (first + second))
    assert 0.02 < values["AP"] < 0.95


def of_draw(metric: MaskAveragePrecision, images: list[Image], times: list[int]) -> dict[str, Tensor]:
    for entry, number in zip(images, times, strict=True):
        for _ in range(number):
            metric.update(*entry)
    return metric.compute()


@pytest.mark.parametrize("kind", [MaskAveragePrecision, CityscapesAveragePrecision])
def test_a_draw_of_images_counts_each_as_often_as_it_is_drawn(kind: type[MaskAveragePrecision]) -> None:
    images = random_images(0)
    metric, parts, truths = kind(CLASSES, SEEN), [], []
    for number, entry in enumerate(images):
        before = metric.truths
        metric.update(*entry)
        parts.append(metric.last_image().of_images(number))
        truths.append((metric.truths - before).numpy())
    judged = Detections.join(parts)
    assert judged is not None
    weights = np.random.default_rng(0).poisson(1.0, (12, len(images)))
    weights[0] = 1
    weights[1, 1:] = 0
    drawn = np.einsum("rn,nac->rac", weights, np.stack(truths))
    precision = AveragePrecision(judged, len(images), CLASSES)(weights.astype(np.float64), drawn)
    scores = precision_scores(precision, SEEN)
    for row, times in enumerate(weights.tolist()):
        values = of_draw(kind(CLASSES, SEEN), images, times)
        for name in (*kind.scalars, "ap"):
            np.testing.assert_allclose(scores[name][row], values[name].numpy(), atol=1e-12, err_msg=f"{name} {times}")
    assert len(np.unique(scores["AP"].round(6))) > 10


def strip(length: int, width: int = 100) -> Tensor:
    mask = torch.zeros(1, width, dtype=torch.bool)
    mask[0, :length] = True
    return mask


@pytest.mark.parametrize("length", range(50, 101, 5))
def test_an_overlap_of_exactly_the_threshold_is_a_match_where_it_is_one_in_pycocotools(length: int) -> None:
    none = torch.zeros(1, dtype=torch.int64)
    images = [(torch.ones(1), none, strip(length)[None], none, strip(100)[None], none.bool())]
    assert measure(images)["AP"].item() == pytest.approx(np.nanmean(reference(images)[..., 0]), abs=1e-12)


def test_an_overlap_just_below_the_threshold_is_no_match() -> None:
    crowd = torch.zeros(1, dtype=torch.bool)
    overlaps = torch.tensor([[np.nextafter(threshold, 0)] for threshold in THRESHOLDS])
    for number, overlap in enumerate(overlaps):
        claimed, _ = match_detections(overlap[None], crowd, crowd)
        assert claimed[0].tolist() == [other < number for other in range(len(THRESHOLDS))]


@pytest.mark.parametrize("truths", [10, 20, 50, 100])
def test_recalls_on_a_sampling_point_are_read_as_in_pycocotools(truths: int) -> None:
    """7 of 10 is a recall of 0.7, which does not reach the point 0.7000000000000001 of `numpy.linspace`."""
    rows = torch.eye(truths, dtype=torch.bool)[:, None]
    none = torch.zeros(truths, dtype=torch.int64)
    for found in range(1, truths):
        images = [(torch.linspace(1, 0.5, found), none[:found], rows[:found], none, rows, none.bool())]
        assert measure(images)["AP"].item() == pytest.approx(np.nanmean(reference(images)[..., 0]), abs=1e-12)


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
