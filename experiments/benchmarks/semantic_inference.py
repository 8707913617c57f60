"""Time and memory of turning masks and classes into a label map: classes in chunks against all classes at once.

`python experiments/benchmarks/semantic_inference.py --classes 847 [--form all]` prints processor seconds and the peak
memory of the process, for one image and the masks of 250 queries at a quarter of its size; with `--form all`, the
way of the official code, also how many pixels differ from the label map made in chunks.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import Tensor

from ovsl.inference import MaskPrediction, resize
from ovsl.inference.semantic import whole_image_labels


def all_at_once(prediction: MaskPrediction, size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Every class at full resolution in one tensor, then the best."""
    masks = resize(prediction.resized_mask_logits(size), original_size).sigmoid()
    return torch.einsum("bqc,bqhw->bchw", prediction.class_scores, masks).argmax(dim=1)


def main() -> None:
    """Print the figures of one form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--form", choices=("chunks", "all"), default="chunks")
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    torch.manual_seed(0)
    size = (options.height, options.width)
    classes = torch.randn(1, 250, options.classes + 1).softmax(dim=2)
    # Smooth masks, as a network gives them.
    masks = resize(4 * torch.randn(1, 250, options.height // 32, options.width // 32), (size[0] // 4, size[1] // 4))
    prediction = MaskPrediction(masks, classes[..., :-1], classes[..., -1], size)
    start = time.process_time()
    make = all_at_once if options.form == "all" else whole_image_labels
    labels = make(prediction, size, size)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.form}, {options.classes} classes: {seconds:.1f} s, peak {peak:.2f} GiB")
    if options.form == "all":
        print(f"{int((labels != whole_image_labels(prediction, size, size)).sum())} of {labels.numel()} pixels differ")


if __name__ == "__main__":
    main()
