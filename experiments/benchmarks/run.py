"""Every comparison as tables with the machine: `make bench`, or `python experiments/benchmarks/run.py --quick`.

Names as arguments choose the comparisons that hold one of them; `--quick` leaves out whole networks and the memory of
training.
"""

from __future__ import annotations

import argparse

import cv2
import data_pipeline
import networks
import pyramids
import roofline
import semantic_inference
import startup
import torch
import training_memory
from timing import HEADER, machine

PARTS = (networks, data_pipeline, semantic_inference)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(f"{machine()}\n\n{HEADER}", flush=True)
    for module in PARTS if options.quick else (*PARTS, pyramids):
        for comparison in module.comparisons():
            if not options.names or any(part in comparison.name for part in options.names):
                print(comparison.row(), flush=True)
    if options.names:
        return
    median, best = data_pipeline.images_per_second()
    print(f"\ndata pipeline, 512x683 -> 512x512, one core: {median:.0f} images/s ({best:.0f} in the best batch)\n")
    startup.table(repeats=1)
    if not options.quick:
        print(flush=True)
        training_memory.main()
        print(flush=True)
        roofline.main()


if __name__ == "__main__":
    main()
