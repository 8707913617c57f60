"""Counts per image as a file, and the intervals over images that come from them."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from ovsl.errors import InputError
from ovsl.results.bootstrap import differences, intervals
from ovsl.results.image_counts import ImageCounts
from ovsl.scores import PIXELS, semantic_scores


def counts(num_images: int = 40, num_classes: int = 7, seed: int = 0, better: float = 0.0) -> ImageCounts:
    """Images with pixels of some classes, easy and hard ones; with `better` a share more of the pixels is found."""
    generator = np.random.default_rng(seed)
    target = generator.integers(20, 200, (num_images, num_classes)) * (
        generator.random((num_images, num_classes)) < 0.5
    )
    found = (target * (generator.uniform(0.2, 0.7, (num_images, 1)) + better)).astype(np.int64)
    tables = np.stack([found, target, target], axis=1)
    return ImageCounts.of([f"{index:03d}" for index in range(num_images)], tables, PIXELS)


def score(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = semantic_scores(sums, seen=[True] * 4 + [False] * 3)
    return {name: found[name] for name in ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU", "pAcc")}


def test_a_file_gives_back_what_was_written_and_is_small(tmp_path: Path) -> None:
    written = counts(num_images=2000, num_classes=150)
    path = tmp_path / "results/test-toy.images.npz"
    written.write(path)
    read = ImageCounts.read(path)
    assert read.images.tolist() == written.images.tolist()
    assert read.num_classes == 150
    for name in PIXELS:
        np.testing.assert_array_equal(read.dense(name), written.dense(name))
    assert path.stat().st_size < 6 * len(written.image), "bytes for each image and class that occurs in it"
    assert np.load(path)["intersection"].sum() == written.columns["intersection"].sum(), "numpy alone reads it"


def test_a_damaged_or_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There are no counts per image at"):
        ImageCounts.read(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="does not hold counts per image"):
        ImageCounts.read(tmp_path / "cut.npz")


def test_parts_join_to_the_same_counts_in_any_order() -> None:
    whole = counts()
    tables = np.stack([whole.dense(name) for name in PIXELS], axis=1)
    odd, even = (ImageCounts.of(whole.images[start::2].tolist(), tables[start::2], PIXELS) for start in (1, 0))
    for parts in ([odd, even], [even, odd]):
        joined = ImageCounts.join(parts)
        assert joined.images.tolist() == whole.images.tolist()
        for name in ("image", "label"):
            np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
        np.testing.assert_array_equal(joined.dense("intersection"), whole.dense("intersection"))


def test_intervals_are_those_of_a_bootstrap_written_with_loops() -> None:
    whole = counts()
    generator = np.random.default_rng(7)
    dense = {name: whole.dense(name) for name in PIXELS}
    drawn = []
    for _ in range(4000):
        chosen = generator.integers(len(whole), size=len(whole))
        sums = {name: table[chosen].sum(0)[None] for name, table in dense.items()}
        drawn.append({name: float(value[0]) for name, value in score(sums).items()})
    found = intervals(whole, score)
    estimates = score({name: table.sum(0)[None] for name, table in dense.items()})
    for name, (low, high) in found.items():
        values, normal = [each[name] for each in drawn], NormalDist()
        bias = normal.inv_cdf(np.mean([value < estimates[name][0] for value in values]))
        expected = np.quantile(values, [normal.cdf(2 * bias - 1.96), normal.cdf(2 * bias + 1.96)])
        np.testing.assert_allclose([low, high], expected, atol=0.15 * (expected[1] - expected[0]), err_msg=name)
    assert found == intervals(whole, score), "the draws have a seed"


def test_an_interval_of_equal_images_has_no_width() -> None:
    tables = np.tile(np.array([[3, 1], [4, 2], [4, 2]]), (10, 1, 1))
    same = ImageCounts.of([str(index) for index in range(10)], tables, PIXELS)
    found = intervals(same, lambda sums: {"mIoU": semantic_scores(sums)["mIoU"]})
    expected = (3 / 5 + 1 / 3) / 2
    assert found["mIoU"] == pytest.approx((expected, expected), abs=1e-12)


def test_undefined_draws_are_left_out_and_an_undefined_score_has_no_interval() -> None:
    """Class 1 is in one image of ten: a third of the draws lacks it, and so has no unseen mean."""
    tables = np.zeros((10, 3, 2), np.int64)
    tables[:, :, 0] = 4
    tables[0, :, 1] = (1, 1, 2)
    some = ImageCounts.of([str(index) for index in range(10)], tables, PIXELS)

    def scores(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = semantic_scores(sums, seen=[True, False])
        return {"unseen": found["mIoU_unseen"], "never": np.full(len(found["mIoU"]), np.nan)}

    assert intervals(some, scores) == {"unseen": (0.5, 0.5)}


def test_a_difference_is_paired() -> None:
    """Both runs vary from image to image alike, so their difference varies far less than each of them."""
    first, second = counts(), counts(better=0.05)
    low, high = differences(first, second, score)["mIoU"]
    assert 0 < low < high
    alone = intervals(first, score)["mIoU"]
    assert high - low < 0.2 * (alone[1] - alone[0])
    assert differences(first, first, score)["mIoU"] == (0.0, 0.0)
