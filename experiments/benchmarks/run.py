"""Every comparison as one table: `make bench`, or `python experiments/benchmarks/run.py [part of a name ...]`."""

from __future__ import annotations

import sys

import cv2
import data_pipeline
import networks
import semantic_inference
import torch
from timing import HEADER, machine

MODULES = (networks, data_pipeline, semantic_inference)


def main() -> None:
    """Print the rows whose name holds one of the arguments; all without arguments."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(f"{machine()}\n\n{HEADER}", flush=True)
    for module in MODULES:
        for comparison in module.comparisons():
            if len(sys.argv) == 1 or any(part in comparison.name for part in sys.argv[1:]):
                print(comparison.row(), flush=True)
    if len(sys.argv) == 1:
        median, best = data_pipeline.images_per_second()
        print(f"\ndata pipeline, 512x683 -> 512x512, one core: {median:.0f} images/s ({best:.0f} in the best batch)")


if __name__ == "__main__":
    main()
