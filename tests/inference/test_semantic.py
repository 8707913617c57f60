import pytest
import torch
from torch.nn import functional

from ovsl.inference import DensePrediction, MaskPrediction, SlidingWindow, WholeImage


def _resize(maps, size):
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
def test_chunks_of_classes_give_the_labels_of_the_whole(chunk):
    torch.manual_seed(0)
    scores = torch.randn(2, 50, 5, 7)
    labels = WholeImage().labels(lambda images: DensePrediction(scores), torch.zeros(2, 3, 40, 56), (61, 83), chunk)
    expected = _resize(_resize(scores, (40, 56)), (61, 83)).argmax(1)
    assert torch.equal(labels, expected)


def test_equal_scores_go_to_the_first_class():
    scores = torch.zeros(1, 9, 2, 2)
    labels = WholeImage().labels(lambda i: DensePrediction(scores), torch.zeros(1, 3, 4, 4), (4, 4), 2)
    assert labels.unique().tolist() == [0]


def test_offset_is_applied_after_the_activation_of_upsampled_scores():
    torch.manual_seed(0)
    scores, offset = torch.randn(1, 3, 4, 4), torch.tensor([0.3, 0.0, 0.1])
    prediction = DensePrediction(scores, "sigmoid", offset)
    expected = _resize(scores, (9, 9)).sigmoid() - offset.view(3, 1, 1)
    torch.testing.assert_close(prediction.semantic_scores((9, 9)), expected)
    torch.testing.assert_close(prediction.semantic_scores((9, 9), slice(1, 3)), expected[:, 1:3])


def test_masks_in_both_orders_of_resizing():
    torch.manual_seed(0)
    masks, classes = 4 * torch.randn(1, 5, 8, 8), torch.rand(1, 5, 11)
    prediction = MaskPrediction(masks, classes, padded_size=(32, 32))
    images, original = torch.zeros(1, 3, 27, 30), (40, 50)
    logits = _resize(masks, (32, 32))[..., :27, :30]
    before = torch.einsum("bqc,bqhw->bchw", classes, _resize(logits, original).sigmoid()).argmax(1)
    after = _resize(torch.einsum("bqc,bqhw->bchw", classes, logits.sigmoid()), original).argmax(1)
    assert torch.equal(WholeImage(True).labels(lambda i: prediction, images, original, 4), before)
    assert torch.equal(WholeImage(False).labels(lambda i: prediction, images, original, 4), after)
    assert not torch.equal(before, after)


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
    assert torch.equal(inference.labels(predict, image, (45, 66), 2), expected)
