import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ovsl.errors import InputError
from ovsl.metrics import OpenVocabularyIoU, segmentation
from ovsl.metrics.segmentation import count_pixels
from tests.waits import Waits

NUM_CLASSES = 12
IGNORE = 255
STATES = ("intersection", "prediction_area", "target_area", "images")
# Classes 9, 10 and 11 never occur in the truth; 9 and 10 are predicted, 11 is not.
SEEN = [True] * 6 + [False] * 4 + [True, False]


def _images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        size = (20 + 3 * index, 31)
        target = torch.randint(0, 9, size, generator=generator)
        prediction = torch.where(
            torch.rand(size, generator=generator) < 0.6, target, torch.randint(0, 11, size, generator=generator)
        )
        target[torch.rand(size, generator=generator) < 0.1] = IGNORE
        images.append((prediction, target))
    return images


def _reference(images, absent_classes):
    """Loops over classes, on NumPy."""
    prediction = np.concatenate([image[0].numpy().ravel() for image in images])
    target = np.concatenate([image[1].numpy().ravel() for image in images])
    prediction, target = prediction[target != IGNORE], target[target != IGNORE]
    iou, accuracy, weighted = [], [], 0.0
    for label in range(NUM_CLASSES):
        predicted, true = prediction == label, target == label
        union = (predicted | true).sum()
        counts = true.any() if absent_classes == "skip" else union > 0
        iou.append((predicted & true).sum() / union if counts else float("nan"))
        accuracy.append((predicted & true).sum() / true.sum() if true.any() else float("nan"))
        if true.any():
            weighted += iou[-1] * true.mean()
    seen = np.nanmean([value for value, is_seen in zip(iou, SEEN, strict=True) if is_seen])
    unseen = np.nanmean([value for value, is_seen in zip(iou, SEEN, strict=True) if not is_seen])
    return {
        "pAcc": (prediction == target).mean(),
        "mIoU": np.nanmean(iou),
        "fwIoU": weighted,
        "mIoU_seen": seen,
        "mIoU_unseen": unseen,
        "hIoU": 2 * seen * unseen / (seen + unseen),
        "iou": np.array(iou),
        "accuracy": np.array(accuracy),
        "pixels": np.array([(target == label).sum() for label in range(NUM_CLASSES)]),
        "images": len(images),
    }


def _metric(**options):
    return OpenVocabularyIoU(NUM_CLASSES, **({"seen": SEEN, "ignore_index": IGNORE} | options))


@pytest.mark.parametrize("absent_classes", ["zero", "skip"])
def test_equals_a_reference_written_with_loops(absent_classes):
    metric, images = _metric(absent=absent_classes), _images(4)
    for prediction, target in images:
        metric.update(prediction, target)
    result = metric.compute()
    reference = _reference(images, absent_classes)
    assert result.keys() == reference.keys()
    for name, value in reference.items():
        np.testing.assert_allclose(result[name].numpy(), value, rtol=1e-12, err_msg=name)


def test_conventions_differ_by_the_classes_that_are_only_predicted():
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    prediction = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    zero = OpenVocabularyIoU(4, absent="zero")
    skip = OpenVocabularyIoU(4)
    zero.update(prediction, truth)
    skip.update(prediction, truth)
    assert zero.compute()["mIoU"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert skip.compute()["mIoU"] == pytest.approx((1 + 0.5) / 2)
    np.testing.assert_equal(zero.compute()["iou"].numpy(), [1, 0.5, 0, np.nan])
    np.testing.assert_equal(skip.compute()["iou"].numpy(), [1, 0.5, np.nan, np.nan])
    assert zero.compute()["pAcc"] == skip.compute()["pAcc"] == 0.75


def test_undefined_figures_are_nan():
    def scalars(metric):
        return {name: float(metric.compute()[name]) for name in metric.scalars}

    prediction, target = torch.tensor([[0, 1]]), torch.tensor([[0, 0]])
    unknown, all_seen, nothing = OpenVocabularyIoU(2), OpenVocabularyIoU(2, seen=[True, True]), _metric()
    for metric in (unknown, all_seen):
        metric.update(prediction, target)
    nothing.update(torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), IGNORE))
    assert np.isnan([scalars(unknown)[name] for name in ("mIoU_seen", "mIoU_unseen", "hIoU")]).all()
    assert scalars(all_seen)["mIoU_seen"] == scalars(all_seen)["mIoU"] == 0.5
    assert np.isnan([scalars(all_seen)[name] for name in ("mIoU_unseen", "hIoU")]).all()
    assert np.isnan(list(scalars(nothing).values())).all()


def test_harmonic_mean_is_zero_when_both_parts_are():
    metric = OpenVocabularyIoU(2, seen=[True, False])
    metric.update(torch.tensor([1, 0]), torch.tensor([0, 1]))
    assert metric.compute()["hIoU"] == 0


def test_batches_and_narrow_integers_count_alike():
    images = [(p[:20], t[:20]) for p, t in _images(3)]
    single, batched = _metric(), _metric()
    for prediction, target in images:
        single.update(prediction.to(torch.int32), target.to(torch.uint8))
    batched.update(torch.stack([p for p, _ in images]), torch.stack([t for _, t in images]))
    assert torch.equal(single.intersection, batched.intersection)
    assert torch.equal(single.prediction_area, batched.prediction_area)
    assert torch.equal(single.target_area, batched.target_area)
    assert single.images == batched.images == 3


def test_reset_in_inference_mode_leaves_a_usable_metric():
    metric, images = _metric(), _images(1)
    with torch.inference_mode():
        metric.update(*images[0])
        metric.reset()
    metric.update(*images[0])
    assert metric.target_area.sum() == (images[0][1] != IGNORE).sum()


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([0, 12], [0, 1], "a prediction pixel has the label 12, but the 12 classes have 0..11"),
        ([-1, 0], [0, 1], "a prediction pixel has the label -1"),
        # One above the last class is where ignored pixels are counted, and must not pass for one.
        ([0, 0], [0, 12], "a target pixel has the label 12, but the 12 classes have 0..11 and the ignore index is 255"),
        ([0, 0], [IGNORE, -3], "a target pixel has the label -3"),
        ([0, 255], [0, 255], "a prediction pixel has the label 255"),
    ],
)
def test_labels_out_of_range_are_named_and_not_counted(prediction, target, message):
    metric = _metric()
    with pytest.raises(InputError, match=message):
        metric.update(torch.tensor(prediction), torch.tensor(target))
    assert not metric.prediction_area.any()


def test_one_histogram_of_pairs_counts_like_one_of_each_label(monkeypatch):
    """Both ways, with the accelerator's histogram too, on images of any size."""
    for may_wait in (True, False):
        monkeypatch.setattr(segmentation, "_may_wait", lambda labels, may_wait=may_wait: may_wait)
        for prediction, target in _images(3):
            counts = {}
            for table_per_pixel in (0, 1000):
                monkeypatch.setattr(segmentation, "_TABLE_PER_PIXEL", table_per_pixel)
                counts[table_per_pixel] = count_pixels(prediction, target, NUM_CLASSES, IGNORE)
            kept = target != IGNORE
            expected = torch.bincount(prediction[kept], minlength=NUM_CLASSES)
            assert torch.equal(counts[0][1], expected)
            assert all(torch.equal(few, table) for few, table in zip(*counts.values(), strict=True))


def test_on_an_accelerator_updates_do_not_wait_and_compute_reports_wrong_labels(monkeypatch):
    monkeypatch.setattr(segmentation, "_may_wait", lambda labels: False)
    metric, images = _metric(), _images(3)
    with Waits() as waits:
        for prediction, target in images:
            metric.update(prediction, target)
    assert waits.places == []
    assert metric.compute()["mIoU"] == pytest.approx(_reference(images, "skip")["mIoU"])
    metric.update(torch.tensor([0, 12, 3]), torch.tensor([-3, IGNORE, 3]))
    with pytest.raises(InputError, match="2 pixels of predictions or targets have labels outside the 12 classes"):
        metric.compute()


def test_sizes_must_agree():
    with pytest.raises(InputError, match=r"prediction is \(4, 5\) but the target is \(4, 6\)"):
        _metric().update(torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, 6, dtype=torch.int64))


@pytest.mark.parametrize("options", [{"seen": [True]}, {"ignore_index": 3}, {"absent": "drop"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        _metric(**options)


def test_memory_does_not_grow_with_the_number_of_classes():
    """The largest tensor that counting 847 classes makes has one entry for each pixel."""
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    labels = torch.randint(0, 847, (256, 256), generator=torch.Generator().manual_seed(0))
    with Sizes():
        counts = count_pixels(labels, labels, num_classes=847, ignore_index=65535)
    assert max(sizes) == labels.numel()
    assert all(torch.equal(count, torch.bincount(labels.flatten(), minlength=847)) for count in counts)


def _evaluate_share(rank, world_size, shares, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    metric, images = _metric(), _images(sum(shares))
    for prediction, target in images[sum(shares[:rank]) : sum(shares[: rank + 1])]:
        metric.update(prediction, target)
    local = {name: getattr(metric, name).clone() for name in STATES}
    union = local["prediction_area"] + local["target_area"] - local["intersection"]
    local_mean = (local["intersection"] / union).nanmean()
    result = metric.compute()
    # What `compute` divided, on every rank: the counts summed over both.
    with metric.sync_context():
        synced = {name: getattr(metric, name).clone() for name in local}
    torch.save({"result": result, "counts": synced, "local_mean": local_mean}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [(5, 2), (1, 0)])
def test_two_processes_with_unequal_shares_give_the_same_counts(tmp_path, shares):
    mp.spawn(_evaluate_share, args=(2, shares, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = _metric()
    for prediction, target in _images(sum(shares)):
        whole.update(prediction, target)
    for rank in ranks:
        for name, count in rank["counts"].items():
            assert torch.equal(count, getattr(whole, name)), name
        for name, value in whole.compute().items():
            torch.testing.assert_close(rank["result"][name], value, rtol=0, atol=0, equal_nan=True)
    # Why counts are summed: the mean of the processes' own means is another number.
    averaged = torch.stack([rank["local_mean"] for rank in ranks]).nanmean()
    if all(shares):
        assert abs(averaged - whole.compute()["mIoU"]) > 1e-4
