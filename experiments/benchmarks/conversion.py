"""Images a second of `ovsl prepare`, in one process, on generated releases of the usual sizes.

`python experiments/benchmarks/conversion.py [--images 24]` prints, for each kind of label files, images per second of
processor time, and the size of a row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from ovsl.prepare import LAYOUTS, Description, plan_conversion


def regions(seed: int, size: tuple[int, int], classes: int) -> np.ndarray:
    """About forty regions with borders as uneven as drawn ones, class indices `(H, W)`."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, classes, (6, 7)).astype(np.uint16)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y += 12 * np.sin(x / 23 + seed) + 3 * np.sin(x / 5)
    x += 12 * np.cos(y / 19) + 3 * np.sin(y / 4)
    return cv2.remap(coarse, 7 * x / size[1], 6 * y / size[0], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)


def photo(file: Path, seed: int, size: tuple[int, int]) -> None:
    """Write a photo whose detail falls off as that of real ones."""
    draw = np.random.default_rng(seed)
    image = sum(
        cv2.resize(draw.normal(0, 40 / 2**octave, (4 << octave, 4 << octave, 3)), size[::-1]) for octave in range(7)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(image) + 128).clip(0, 255).astype(np.uint8)).save(file, quality=90)


def save(file: Path, values: np.ndarray) -> None:
    """Write a picture of labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def ade20k_150(root: Path, number: int) -> None:
    """Classes and instances, 512x683."""
    photo(root / f"images/validation/{number}.jpg", number, (512, 683))
    values = regions(number, (512, 683), 150)
    save(root / f"annotations/validation/{number}.png", (values + 1).astype(np.uint8))
    instances = np.dstack([values % 101, values % 40, values * 0]).astype(np.uint8)
    save(root / f"annotations_instance/validation/{number}.png", instances)


def ade20k_847(root: Path, number: int) -> None:
    """Objects as colours, 1024x1365, shrunk to 512x683."""
    file = root / f"images/ADE/validation/ADE_val_{number}.jpg"
    photo(file, number, (1024, 1365))
    values = regions(number, (1024, 1365), 3000)
    save(
        file.with_name(f"ADE_val_{number}_seg.png"),
        np.dstack([values // 256 * 10, values % 256, values % 9]).astype(np.uint8),
    )


def cityscapes_19(root: Path, number: int) -> None:
    """Label ids and instance ids, 1024x2048."""
    photo(root / f"leftImg8bit/val/x/{number}_leftImg8bit.png", number, (1024, 2048))
    values = regions(number, (1024, 2048), 34)
    save(root / f"gtFine/val/x/{number}_gtFine_labelIds.png", values.astype(np.uint8))
    instances = np.where(values >= 24, values * 1000 + 1, values).astype(np.uint16)
    save(root / f"gtFine/val/x/{number}_gtFine_instanceIds.png", instances)


def coco_stuff_171(root: Path, number: int) -> None:
    """Pixel maps, 480x640."""
    photo(root / f"val2017/{number}.jpg", number, (480, 640))
    save(root / f"stuffthingmaps/val2017/{number}.png", regions(number, (480, 640), 182).astype(np.uint8))


def coco_panoptic_133(root: Path, number: int) -> None:
    """Panoptic maps, 480x640."""
    photo(root / f"val2017/{number}.jpg", number, (480, 640))
    values = regions(number, (480, 640), 90).astype(np.int32)
    save(root / f"panoptic_val2017/{number}.png", np.dstack([values, values * 0, values * 0]).astype(np.uint8))
    file = root / "annotations/panoptic_val2017.json"
    file.parent.mkdir(exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {"images": [], "annotations": []}
    listed = [{"id": int(i), "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1} for i in np.unique(values) if i]
    known["images"].append({"id": number, "file_name": f"{number}.jpg"})
    known["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": listed})
    file.write_text(json.dumps(known))


def pascal_context_459(root: Path, number: int) -> None:
    """Label maps in MATLAB's format, 375x500."""
    photo(root / f"JPEGImages/{number}.jpg", number, (375, 500))
    (root / "trainval").mkdir(exist_ok=True)
    values = regions(number, (375, 500), 460)
    savemat(root / f"trainval/{number}.mat", {"LabelMap": values}, do_compression=True)
    file = root / "ImageSets/Main/val.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as names:
        names.write(f"{number}\n")


TREES: tuple[Callable[[Path, int], None], ...] = (
    ade20k_150, ade20k_847, cityscapes_19, coco_panoptic_133, coco_stuff_171, pascal_context_459
)  # fmt: skip


def main() -> None:
    """Print a row for each release."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=24)
    images = parser.parse_args().images
    print("| release | images/s | KB a row |\n|---|---:|---:|")
    for tree in TREES:
        with tempfile.TemporaryDirectory() as folder:
            root, name = Path(folder) / "release", tree.__name__
            for number in range(images):
                tree(root, number)
            layout = LAYOUTS[name]()
            conversion = plan_conversion(
                layout, root, Path(folder) / "out", lambda release, plan, of=layout: Description(
                    of.title, of.title, of.words(), {"validation": images}, plan, release.panoptic
                ),
            )  # fmt: skip
            conversion.tasks[0].layout.labelled(conversion.tasks[0].shard.items[0])  # imports
            start = time.process_time()
            conversion.run(workers=1)
            seconds = time.process_time() - start
            size = sum(file.stat().st_size for file in (Path(folder) / "out").glob("*.parquet"))
            print(f"| {name} | {images / seconds:.0f} | {size / images / 1000:.0f} |", flush=True)


if __name__ == "__main__":
    main()
