"""From masks and classes to a label map: bands of rows against classes in chunks.

`python experiments/benchmarks/semantic_inference.py --classes 847 [--form chunks]` prints processor seconds of one form
and by how much the peak of the process rose, for one image and the masks of 250 queries at a quarter of its size.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import torch
from timing import Comparison, differing
from torch import Tensor

from ovsl.inference import MaskPrediction, resize
from ovsl.inference.rows import Size
from ovsl.inference.semantic import whole_image_labels


def in_chunks(prediction: MaskPrediction, size: Size, original_size: Size, chunk: int = 32) -> Tensor:
    """All masks at full size, then classes in chunks with a running maximum."""
    masks = resize(prediction.resized_mask_logits(size), original_size).sigmoid()
    best = masks.new_full((len(masks), *original_size), -torch.inf)
    labels = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, prediction.num_classes, chunk):
        scores = torch.einsum("bqc,bqhw->bchw", prediction.class_scores[..., start : start + chunk], masks)
        values, index = scores.max(dim=1)
        better = values > best
        best, labels = torch.where(better, values, best), torch.where(better, index + start, labels)
    return labels


def all_at_once(prediction: MaskPrediction, size: Size, original_size: Size) -> Tensor:
    """Every class at full resolution in one tensor, then the best: the way of the official code."""
    masks = resize(prediction.resized_mask_logits(size), original_size).sigmoid()
    return torch.einsum("bqc,bqhw->bchw", prediction.class_scores, masks).argmax(dim=1)


FORMS = {"rows": whole_image_labels, "chunks": in_chunks, "all": all_at_once}


def example(classes: int, size: Size, queries: int = 250) -> MaskPrediction:
    """Smooth masks, as a network gives them, at a quarter of the size."""
    torch.manual_seed(0)
    scores = torch.randn(1, queries, classes + 1).softmax(dim=2)
    masks = resize(4 * torch.randn(1, queries, size[0] // 32, size[1] // 32), (size[0] // 4, size[1] // 4))
    return MaskPrediction(masks, scores[..., :-1], scores[..., -1], size)


def comparisons() -> Iterator[Comparison]:
    """250 queries at 512 pixels."""
    size = (512, 512)
    for classes in (150, 847):
        for form in ("chunks", "all"):
            prediction = example(classes, size)
            yield Comparison(
                f"semantic labels, 512, 250 queries, {classes} classes ({form})",
                lambda prediction=prediction, form=form: FORMS[form](prediction, size, size),
                lambda prediction=prediction: whole_image_labels(prediction, size, size),
                differing,
                rounds=3,
            )


def main() -> None:
    """Print the figures of one form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--form", choices=FORMS, default="rows")
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (options.height, options.width)
    prediction = example(options.classes, size)
    FORMS[options.form](example(2, (64, 64)), (64, 64), (64, 64))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    FORMS[options.form](prediction, size, size)
    seconds = time.process_time() - start
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{options.form}, {options.classes} classes: {seconds:.1f} s, {added:.2f} GiB added")


if __name__ == "__main__":
    main()
