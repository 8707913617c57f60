"""Small trees in the layout and the encoding of the official releases, made of known class indices."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (24, 32)
Truth = dict[str, dict[str, np.ndarray]]
"""Class indices of each image of each split of a dataset."""


def entries(vocabulary: str) -> list[dict]:
    """The classes of a shipped vocabulary, with what its file says of the release."""
    text = resources.files("ovsl.vocabulary").joinpath("data", f"{vocabulary}.json").read_text()
    return json.loads(text)["classes"]


def labels(seed: int, classes: Iterable[int], ignored: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Draw blocks of classes, about one in eight without a label."""
    draw = np.random.default_rng(seed)
    blocks = draw.choice(list(classes), (-(-size[0] // 4), -(-size[1] // 4)))
    blocks = np.where(draw.random(blocks.shape) < 0.12, ignored, blocks)
    return np.kron(blocks, np.ones((4, 4), int))[: size[0], : size[1]].astype(np.uint8 if ignored == 255 else np.uint16)


def write_image(file: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """Write a photo of noise, in the form of its suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


def write_labels(file: Path, values: np.ndarray, palette: bool = False) -> None:
    """Write a picture of label values, as a palette picture where the release has these."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if palette:
        picture = Image.frombytes("P", values.shape[::-1], values.astype(np.uint8).tobytes())
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    else:
        picture = Image.fromarray(values)
    picture.save(file)


def decode(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids as colours."""
    return np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8)


def draw_truth(splits: dict[str, list[str]], classes: Iterable[int], ignored: int = 255) -> Truth:
    """Labels for each image of each split."""
    classes, seed = list(classes), 0
    truth: Truth = {}
    for split, names in splits.items():
        for name in names:
            seed += 1
            truth.setdefault(split, {})[name] = labels(seed, classes, ignored)
    return truth


def coded(truth: np.ndarray, codes: dict[int, int]) -> np.ndarray:
    """Values of class indices, by a dictionary."""
    return np.vectorize(codes.__getitem__, otypes=[np.int64])(truth)


def ade20k_150(root: Path) -> Truth:
    truth = draw_truth({"train": ["ADE_train_1", "ADE_train_2"], "validation": ["ADE_val_1"]}, range(150))
    for split, images in truth.items():
        part = {"train": "training", "validation": "validation"}[split]
        for seed, (name, classes) in enumerate(images.items()):
            write_image(root / f"ADEChallengeData2016/images/{part}/{name}.jpg", seed)
            values = np.where(classes == 255, 0, classes + 1).astype(np.uint8)
            write_labels(root / f"ADEChallengeData2016/annotations/{part}/{name}.png", values)
    return truth


def ade20k_847(root: Path) -> Truth:
    truth = draw_truth({"train": ["ADE_train_1", "ADE_train_2"], "validation": ["ADE_val_1"]}, range(0, 847, 7), 65535)
    ids = {index: entry["dataset_id"] for index, entry in enumerate(entries("ade20k_847"))}
    unlisted = next(number for number in range(1, 4000) if number not in ids.values())
    for split, images in truth.items():
        part = {"train": "training", "validation": "validation"}[split]
        for seed, (name, classes) in enumerate(images.items()):
            file = root / f"ADE20K_2021_17_01/images/ADE/{part}/urban/street/{name}.jpg"
            write_image(file, seed)
            objects = coded(classes, {**ids, 65535: unlisted})
            instance = np.random.default_rng(seed).integers(0, 10, objects.shape)
            colors = np.dstack([objects // 256 * 10 + instance, objects % 256, instance * 20]).astype(np.uint8)
            Image.fromarray(colors).save(file.with_name(f"{name}_seg.png"))
            Image.fromarray(colors).save(file.with_name(f"{name}_parts_1.png"))
    return truth


def cityscapes_19(root: Path) -> Truth:
    truth = draw_truth({"train": ["aachen_0_1", "bochum_0_2"], "validation": ["lindau_0_1"]}, range(19))
    ids = {index: entry["dataset_id"] for index, entry in enumerate(entries("cityscapes_19"))}
    for split, images in truth.items():
        part = {"train": "train", "validation": "val"}[split]
        for seed, (name, classes) in enumerate(images.items()):
            city = name.split("_")[0]
            write_image(root / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", seed)
            # Not evaluated: 0..6, 9, 10, 14, 15, 16, 18, 29, 30.
            values = coded(classes, {**ids, 255: (0, 3, 15, 30)[seed % 4]})
            write_labels(root / f"gtFine/{part}/{city}/{name}_gtFine_labelIds.png", values.astype(np.uint8))
            things = values >= 24  # persons, riders and vehicles; half of the picture is groups
            counted = things & (np.arange(SIZE[1]) < 16)
            instances = np.where(counted, values * 1000 + np.arange(SIZE[0])[:, None] // 12, values)
            write_labels(root / f"gtFine/{part}/{city}/{name}_gtFine_instanceIds.png", instances.astype(np.uint16))
    return truth


def _coco_stuff_maps(root: Path, truth: Truth, values: Callable[[np.ndarray], np.ndarray]) -> None:
    for split, images in truth.items():
        part = {"train": "train2017", "validation": "val2017"}[split]
        for seed, (name, classes) in enumerate(images.items()):
            write_image(root / f"{part}/{name}.jpg", seed)
            write_labels(root / f"stuffthingmaps/{part}/{name}.png", values(classes).astype(np.uint8))


def coco_stuff_171(root: Path) -> Truth:
    truth = draw_truth({"train": ["000000000009"], "validation": ["000000000139", "000000000285"]}, range(171))
    ids = {index: entry["dataset_id"] - 1 for index, entry in enumerate(entries("coco_stuff_171"))}
    _coco_stuff_maps(root, truth, lambda classes: coded(classes, {**ids, 255: 255}))
    return truth


def coco_object_81(root: Path) -> Truth:
    truth = draw_truth({"train": ["000000000009"], "validation": ["000000000139"]}, range(81))
    ids = {index: entry["dataset_id"] - 1 for index, entry in enumerate(entries("coco_object_81"))}
    # Background is any stuff: ids 92..182, stored lowered by one.
    _coco_stuff_maps(root, truth, lambda classes: coded(classes, {**ids, 0: 91 + int(classes.sum()) % 91, 255: 255}))
    return truth


def coco_panoptic_133(root: Path) -> Truth:
    truth = draw_truth({"train": ["000000000009"], "validation": ["000000000139", "000000000285"]}, range(133))
    ids = {index: entry["dataset_id"] for index, entry in enumerate(entries("coco_panoptic_133"))}
    for split, images in truth.items():
        part = {"train": "train2017", "validation": "val2017"}[split]
        annotations = []
        for seed, (name, classes) in enumerate(images.items()):
            write_image(root / f"{part}/{name}.jpg", seed)
            # A segment for each class, numbered without order up to 24 bits.
            numbers = {c: 1 + (int(c) * 7919 * 113) % (1 << 24) for c in np.unique(classes) if c != 255}
            drawn = coded(classes, {**numbers, 255: 0})
            file = root / f"annotations/panoptic_{part}/{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb(drawn)).save(file)
            listed = [
                {"id": number, "category_id": ids[c], "iscrowd": int(c % 5 == 0), "bbox": [0, 0, 1, 1], "area": 1}
                for c, number in numbers.items()
            ]
            annotations.append({"image_id": int(name), "file_name": f"{name}.png", "segments_info": listed})
        content = {
            "images": [{"id": int(name), "file_name": f"{name}.jpg"} for name in images],
            "annotations": annotations,
        }
        (root / f"annotations/panoptic_{part}.json").write_text(json.dumps(content))
    return truth


def mapillary_vistas_65(root: Path) -> Truth:
    truth = draw_truth({"train": ["a", "b"], "validation": ["c"]}, range(65))
    for split, images in truth.items():
        part = {"train": "training", "validation": "validation"}[split]
        annotations = []
        for seed, (name, classes) in enumerate(images.items()):
            write_image(root / f"{part}/images/{name}.jpg", seed)
            write_labels(root / f"{part}/labels/{name}.png", np.where(classes == 255, 65, classes), palette=True)
            numbers = {c: int(c) * 300 + 1 for c in np.unique(classes) if c != 255}
            file = root / f"{part}/panoptic/{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb(coded(classes, {**numbers, 255: 0}))).save(file)
            listed = [
                {"id": number, "category_id": int(c) + 1, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1}
                for c, number in numbers.items()
            ]
            annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": listed})
        (root / f"{part}/panoptic/panoptic_2018.json").write_text(json.dumps({"annotations": annotations}))
    return truth


def foodseg_103(root: Path) -> Truth:
    truth = draw_truth({"train": ["00000000", "00000001"], "validation": ["00000048"]}, range(104))
    for split, images in truth.items():
        part = {"train": "train", "validation": "test"}[split]
        for seed, name in enumerate(images):
            images[name] = labels(seed, range(104), 103)  # the release has no pixel without a label
            write_image(root / f"FoodSeg103/Images/img_dir/{part}/{name}.jpg", seed)
            write_labels(root / f"FoodSeg103/Images/ann_dir/{part}/{name}.png", images[name].astype(np.uint8))
            images[name] = images[name].astype(np.uint8)
    return truth


def fss_1000(root: Path) -> Truth:
    listed, truth = entries("fss_1000"), {}
    for split, (first, last) in {"train": (1, 521), "validation": (521, 761), "test": (761, 1001)}.items():
        for index in range(first, last):
            folder = listed[index]["name"].replace(" ", "_")
            covered = labels(index, [0, index], 0, (4, 4))
            write_image(root / f"fewshot_data/{folder}/1.jpg", 0, (4, 4))
            grey = np.where(covered > 0, 128 + index % 128, index % 128).astype(np.uint8)
            write_labels(root / f"fewshot_data/{folder}/1.png", grey)
            truth.setdefault(split, {})[f"{folder}/1"] = covered.astype(np.uint16)
    return truth


def camvid(root: Path) -> Truth:
    truth = draw_truth(
        {"train": ["0001TP_006690"], "validation": ["0016E5_07959"], "test": ["Seq05VD_f00000"]}, range(11)
    )
    for split, images in truth.items():
        part = {"train": "train", "validation": "val", "test": "test"}[split]
        for seed, (name, classes) in enumerate(images.items()):
            write_image(root / f"CamVid/{part}/{name}.png", seed)
            write_labels(
                root / f"CamVid/{part}annot/{name}.png", np.where(classes == 255, 11, classes).astype(np.uint8)
            )
    return truth


def _voc(root: Path, background: bool) -> Truth:
    splits = {"train": ["2007_01"], "train_aug": ["2007_01", "2008_05"], "validation": ["2007_33", "2007_42"]}
    truth = draw_truth(splits, range(21 if background else 20))
    truth["train_aug"]["2007_01"] = truth["train"]["2007_01"]
    top = root / "VOCdevkit/VOC2012"
    for split, images in truth.items():
        for seed, (name, classes) in enumerate(images.items()):
            write_image(top / f"JPEGImages/{name}.jpg", seed)
            # Without background, that is not labelled; borders are not in either.
            drawn = classes if background else np.where(classes == 255, 0, classes + 1)
            drawn[:, -1] = 255
            classes[:, -1] = 255
            if split != "train_aug":
                write_labels(top / f"SegmentationClass/{name}.png", drawn, palette=True)
            write_labels(top / f"SegmentationClassAug/{name}.png", drawn)
    lists = top / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_01\n")
    (lists / "val.txt").write_text("2007_33\n2007_42\n")
    return truth


def pascal_voc_20(root: Path) -> Truth:
    return _voc(root, background=False)


def pascal_voc_21(root: Path) -> Truth:
    return _voc(root, background=True)


def _context(root: Path, vocabulary: str, ignored: int, others: tuple[int, ...]) -> Truth:
    listed = entries(vocabulary)
    truth = draw_truth({"train": ["2008_01", "2008_02"], "validation": ["2008_07"]}, range(len(listed)), ignored)
    ids = {index: entry["dataset_id"] for index, entry in enumerate(listed)}
    top = root / "VOCdevkit/VOC2010"
    (top / "ImageSets/Main").mkdir(parents=True)
    (top / "trainval").mkdir()
    for split, images in truth.items():
        for seed, (name, classes) in enumerate(images.items()):
            write_image(top / f"JPEGImages/{name}.jpg", seed)
            if others[0] in ids.values():  # background has no pixel without a label
                classes[classes == ignored] = 0
            drawn = coded(classes, {**ids, ignored: others[seed % len(others)]})
            if others[0] in ids.values():
                drawn[classes == 0] = others[seed % len(others)]
            savemat(top / f"trainval/{name}.mat", {"LabelMap": drawn.astype(np.uint16)}, do_compression=True)
        part = {"train": "train", "validation": "val"}[split]
        (top / f"ImageSets/Main/{part}.txt").write_text("".join(f"{name}  1\n" for name in images))
    return truth


def pascal_context_59(root: Path) -> Truth:
    return _context(root, "pascal_context_59", 255, (255, 0, 1, 459))


def pascal_context_60(root: Path) -> Truth:
    return _context(root, "pascal_context_60", 255, (0, 255, 1, 459))


def pascal_context_459(root: Path) -> Truth:
    return _context(root, "pascal_context_459", 65535, (0,))


TREES: dict[str, Callable[[Path], Truth]] = {
    tree.__name__: tree
    for tree in (
        ade20k_150, ade20k_847, camvid, cityscapes_19, coco_object_81, coco_panoptic_133, coco_stuff_171, foodseg_103,
        fss_1000, mapillary_vistas_65, pascal_context_59, pascal_context_60, pascal_context_459, pascal_voc_20,
        pascal_voc_21,
    )
}  # fmt: skip
