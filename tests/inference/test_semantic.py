import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ovsl.inference import DensePrediction, MaskPrediction, SlidingWindow, WholeImage, rows
from ovsl.inference.rows import Rows


def _resize(maps, size):
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@pytest.fixture(params=[0, 5000], ids=["few-rows", "more-rows"], autouse=True)
def band_numbers(request, monkeypatch):
    """Every map of these tests is joined from several bands."""
    monkeypatch.setitem(rows._BAND_NUMBERS, "cpu", request.param)
    monkeypatch.setattr(rows, "_LEAST_ROWS", 3)


def test_bands_of_rows_give_the_labels_of_the_whole():
    torch.manual_seed(0)
    scores = torch.randn(2, 50, 5, 7)
    labels = WholeImage().labels(lambda images: DensePrediction(scores), torch.zeros(2, 3, 40, 56), (61, 83))
    expected = _resize(_resize(scores, (40, 56)), (61, 83)).argmax(1)
    assert torch.equal(labels, expected)


def test_equal_scores_go_to_the_first_class():
    scores = torch.zeros(1, 9, 2, 2)
    labels = WholeImage().labels(lambda i: DensePrediction(scores), torch.zeros(1, 3, 4, 4), (4, 4))
    assert labels.unique().tolist() == [0]


def test_offset_is_applied_after_the_activation_of_upsampled_scores():
    torch.manual_seed(0)
    scores, offset = torch.randn(1, 3, 4, 4), torch.tensor([0.3, 0.0, 0.1])
    prediction = DensePrediction(scores, "sigmoid", offset)
    expected = _resize(scores, (9, 9)).sigmoid() - offset.view(3, 1, 1)
    torch.testing.assert_close(prediction.semantic_scores((9, 9)), expected)


def test_masks_in_both_orders_of_resizing():
    torch.manual_seed(0)
    masks, classes = 4 * torch.randn(1, 5, 8, 8), torch.rand(1, 5, 11)
    prediction = MaskPrediction(masks, classes, padded_size=(32, 32))
    images, original = torch.zeros(1, 3, 27, 30), (40, 50)
    logits = _resize(masks, (32, 32))[..., :27, :30]
    before = torch.einsum("bqc,bqhw->bchw", classes, _resize(logits, original).sigmoid()).argmax(1)
    after = _resize(torch.einsum("bqc,bqhw->bchw", classes, logits.sigmoid()), original).argmax(1)
    assert torch.equal(WholeImage(True).labels(lambda i: prediction, images, original), before)
    assert torch.equal(WholeImage(False).labels(lambda i: prediction, images, original), after)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("sizes", [((8, 8), (32, 24)), ((30, 50), (17, 21)), ((9, 40), (9, 13)), ((7, 5), (29, 5))])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_bands_are_the_rows_of_the_resized_map(sizes, count):
    torch.manual_seed(0)
    size, new_size = sizes
    maps = torch.randn(2, 6, *size)
    resized = Rows.of(maps).resized(new_size)
    bands = [resized.band(y, min(y + count, new_size[0])) for y in range(0, new_size[0], count)]
    torch.testing.assert_close(torch.cat(bands, dim=1).permute(0, 3, 1, 2), _resize(maps, new_size))
    assert torch.equal(resized.whole(), _resize(maps, new_size))


@pytest.mark.parametrize("resize_masks_first", [True, False])
def test_no_pixel_differs_from_all_classes_at_full_size(resize_masks_first):
    torch.manual_seed(0)
    masks = _resize(4 * torch.randn(2, 40, 6, 8), (24, 32))
    prediction = MaskPrediction(masks, torch.randn(2, 40, 171).softmax(2), padded_size=(96, 128))
    inference, images, original = WholeImage(resize_masks_first), torch.zeros(2, 3, 90, 120), (131, 177)
    logits = _resize(masks, (96, 128))[..., :90, :120]
    if resize_masks_first:
        scores = torch.einsum("bqc,bqhw->bchw", prediction.class_scores, _resize(logits, original).sigmoid())
    else:
        scores = _resize(torch.einsum("bqc,bqhw->bchw", prediction.class_scores, logits.sigmoid()), original)
    labels = inference.labels(lambda _: prediction, images, original)
    assert int((labels != scores.argmax(1)).sum()) == 0
    torch.testing.assert_close(inference.scores(lambda _: prediction, images, original), scores)


class _LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that one operation has made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and not tensor._is_view():
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_neither_masks_nor_scores_are_held_at_full_size():
    masks, classes, size = torch.randn(1, 100, 64, 128), torch.rand(1, 100, 847), (256, 512)
    prediction = MaskPrediction(masks, classes)
    with _LargestTensor() as largest:
        labels = WholeImage().labels(lambda _: prediction, torch.zeros(1, 3, *size), size)
    assert labels.shape == (1, *size)
    # Few rows of all classes; all rows of the masks would be 13 million numbers, of the classes 111 million.
    assert largest.numbers <= 9 * size[1] * 847


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 130), (40, 200), (200, 40), (64, 107)])
def test_windows_cover_every_pixel_and_stay_inside(height, width):
    inference = SlidingWindow(crop_size=64, stride=43)
    covered = torch.zeros(height, width)
    windows = inference.windows(height, width)
    for y1, x1, y2, x2 in windows:
        assert 0 <= y1 < y2 <= height
        assert 0 <= x1 < x2 <= width
        assert (y2 - y1, x2 - x1) == (min(64, height), min(64, width))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    assert windows == sorted(windows)


def test_overlapping_windows_are_averaged():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 50, 70)

    def predict(crops):
        return DensePrediction(functional.avg_pool2d(crops, 8))

    total, count = torch.zeros(2, 3, 50, 70), torch.zeros(50, 70)
    inference = SlidingWindow(crop_size=32, stride=20, window_batch_size=3)
    for y1, x1, y2, x2 in inference.windows(50, 70):
        crop = image[..., y1:y2, x1:x2]
        total[..., y1:y2, x1:x2] += _resize(functional.avg_pool2d(crop, 8), (32, 32))
        count[y1:y2, x1:x2] += 1
    expected = _resize(total / count, (45, 66)).argmax(1)
    assert torch.equal(inference.labels(predict, image, (45, 66)), expected)
