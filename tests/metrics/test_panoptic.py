import time

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from ovsl.errors import InputError
from ovsl.metrics.panoptic import PanopticQuality

CLASSES = 7
THINGS = (True, True, True, False, False, True, False)
SEEN = (True, False, True, True, False, True, True)
Image = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def blobs(generator: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """A map of ids 0..count, from the nearest of some random points."""
    points = generator.random((count + 2, 2)) * (height, width)
    rows, columns = np.mgrid[:height:4, :width:4]
    distance = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    nearest = distance.argmin(-1)
    ids = np.where(nearest > count, 0, nearest)
    return ids.repeat(4, 0).repeat(4, 1)[:height, :width]


def image(seed: int, height: int = 48, width: int = 64, count: int = 9) -> Image:
    """True segments, and a prediction that shifts, relabels and drops some of them."""
    generator = np.random.default_rng(seed)
    target = blobs(generator, height, width, count)
    target_classes = generator.integers(0, CLASSES, count)
    crowd = generator.random(count) < 0.15
    prediction = np.roll(target, generator.integers(-4, 5, 2), (0, 1))
    mixed = blobs(generator, height, width, count)
    prediction = np.where(generator.random() < 0.3, mixed, prediction)
    prediction[generator.integers(0, height) :, : width // 4] = 0
    classes = np.where(generator.random(count) < 0.7, target_classes, generator.integers(0, CLASSES, count))
    return tuple(torch.from_numpy(a) for a in (prediction, classes, target, target_classes, crowd))  # type: ignore[return-value]


def reference(images: list[Image]) -> dict[str, np.ndarray]:
    """The rules of the COCO panoptic API, segment by segment, on sets of pixels.

    Written from the rules, since that API is not published as a package. Where an image has several crowd regions of
    one class the API knows only the last of them; COCO has one at most, and here all of them count.
    """
    iou_sum, found, extra, missed = (np.zeros(CLASSES) for _ in range(4))
    for prediction, classes, target, target_classes, crowd in images:
        segments = {i: (prediction == i).numpy() for i in range(1, len(classes) + 1)}
        truths = {i: (target == i).numpy() for i in range(1, len(target_classes) + 1)}
        void = (target == 0).numpy()
        used, hit = set(), set()
        for i, mask in segments.items():
            for j, truth in truths.items():
                if crowd[j - 1] or classes[i - 1] != target_classes[j - 1]:
                    continue
                intersection = (mask & truth).sum()
                union = ((mask & ~void) | truth).sum()
                if intersection and intersection / union > 0.5:
                    iou_sum[classes[i - 1]] += intersection / union
                    found[classes[i - 1]] += 1
                    used.add(i)
                    hit.add(j)
        for j, truth in truths.items():
            if j not in hit and not crowd[j - 1] and truth.any():
                missed[target_classes[j - 1]] += 1
        for i, mask in segments.items():
            if i in used or not mask.any():
                continue
            excused = (mask & void).sum()
            excused += sum(
                (mask & t).sum() for j, t in truths.items() if crowd[j - 1] and target_classes[j - 1] == classes[i - 1]
            )
            if excused / mask.sum() <= 0.5:
                extra[classes[i - 1]] += 1
    size = found + extra / 2 + missed / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        pq, rq = iou_sum / size, found / size
        sq = np.where(size > 0, np.where(found > 0, iou_sum / found, 0), np.nan)
    return {"pq": pq, "sq": sq, "rq": rq}


def measure(images: list[Image]) -> PanopticQuality:
    metric = PanopticQuality(CLASSES, THINGS, SEEN)
    for entry in images:
        metric.update(*entry)
    return metric


@pytest.mark.parametrize("start", [0, 100, 200])
def test_equals_the_rules_segment_by_segment(start: int) -> None:
    images = [image(start + i) for i in range(12)]
    values, expected = measure(images).compute(), reference(images)
    for name, quality in expected.items():
        np.testing.assert_allclose(values[name].numpy(), quality, atol=1e-11)
    things, seen = np.array(THINGS), np.array(SEEN)
    assert values["PQ"].item() == pytest.approx(np.nanmean(expected["pq"]))
    assert values["SQ_things"].item() == pytest.approx(np.nanmean(expected["sq"][things]))
    assert values["RQ_stuff"].item() == pytest.approx(np.nanmean(expected["rq"][~things]))
    first, second = np.nanmean(expected["pq"][seen]), np.nanmean(expected["pq"][~seen])
    assert values["hPQ"].item() == pytest.approx(2 * first * second / (first + second))
    assert 0.1 < values["PQ"] < 0.9
    assert values["images"] == 12


def test_a_perfect_prediction_has_quality_one_and_absent_classes_do_not_count() -> None:
    prediction, _, target, target_classes, _ = image(5)
    metric = PanopticQuality(CLASSES + 3, (*THINGS, True, True, True))
    metric.update(target, target_classes, target, target_classes)
    values = metric.compute()
    assert values["PQ"] == values["SQ"] == values["RQ"] == 1
    assert values["pq"][-3:].isnan().all()
    assert values["hPQ"].isnan()
    del prediction


def test_an_iou_of_one_half_is_no_match() -> None:
    metric = PanopticQuality(1, [True])
    one = torch.tensor([0])
    metric.update(torch.tensor([[1, 1, 0]]), one, torch.tensor([[1, 1, 1]]), one)
    metric.update(torch.tensor([[1, 0]]), one, torch.tensor([[1, 1]]), one)
    assert metric.true_positives.item() == 1
    assert metric.compute()["PQ"].item() == pytest.approx((2 / 3) / 2)


def test_void_and_crowd_excuse_a_false_positive() -> None:
    metric = PanopticQuality(2, [True, True])
    target = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    labels, crowd = torch.tensor([0, 1]), torch.tensor([True, False])
    metric.update(torch.tensor([[1, 1, 0, 2, 2, 0, 3, 3]]), torch.tensor([1, 0, 1]), target, labels, crowd)
    assert metric.false_positives.tolist() == [0, 0]
    # In a crowd region of another class there is no excuse.
    metric.update(torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]]), torch.tensor([1, 1]), target, labels, crowd)
    assert metric.false_positives.tolist() == [0, 1]
    assert metric.false_negatives.tolist() == [0, 0]


def test_maps_that_do_not_fit_are_refused_and_not_counted() -> None:
    metric = PanopticQuality(2, [True, True])
    ids, labels = torch.ones(4, 4, dtype=torch.int64), torch.tensor([0])
    for bad in (
        (ids[:2], labels, ids, labels),
        (2 * ids, labels, ids, labels),
        (ids, labels + 2, ids, labels),
        (ids, labels, ids, labels - 1),
    ):
        with pytest.raises(InputError):
            metric.update(*bad)
    assert metric.images == 0
    assert metric.true_positives.sum() == 0


def _measure_part(rank: int, port: int, results: "multiprocessing.SimpleQueue[dict[str, list[float]]]") -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    metric = measure([image(i) for i in range(rank, 7, 2)])
    values = metric.compute()
    results.put({name: values[name].tolist() for name in ("pq", "sq", "rq")} | {"images": [values["images"].item()]})
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_same_to_the_last_bit() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=_measure_part, args=(rank, 29641, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    expected = measure([image(i) for i in range(7)]).compute()
    for values in found:
        assert values["images"] == [7]
        for name in ("pq", "sq", "rq"):
            np.testing.assert_array_equal(values[name], expected[name].numpy())


def test_two_hundred_photos_take_seconds() -> None:
    pool = [image(i, 480, 640, 40) for i in range(4)]
    metric = PanopticQuality(CLASSES, THINGS, SEEN)
    started = time.process_time()
    for i in range(200):
        metric.update(*pool[i % 4])
    assert time.process_time() - started < 10
