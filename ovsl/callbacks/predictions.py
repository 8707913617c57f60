"""What `ovsl predict` leaves on disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from ovsl.callbacks.pictures import as_pictures
from ovsl.data.batches import EvaluationBatch
from ovsl.errors import InputError
from ovsl.evaluation import photo_pixels
from ovsl.inference import Segmentation, SlidingWindow
from ovsl.methods.base import SegmentationModule
from ovsl.results.drawing import Picture, draw_overlay
from ovsl.runs.files import path_below, write_text
from ovsl.vocabulary import Vocabulary

CLASSES = "classes"
"""Name of the file that names the classes; an image of this name gets an underscore."""


class PredictionFiles(BasePredictionWriter):
    """Write, for each image, a label map, an overlay with legend, the share of each class, and panoptic segments.

    In `<run directory>/predictions`: `<id>.labels.png` (16 bit, the index of the class), `<id>.overlay.png` and
    `<id>.json`; from methods that predict masks also `<id>.panoptic.png` (16 bit, the id of the segment, 0 for none),
    whose segments the JSON lists. `classes.json` names the indices: a folder holds the predictions of one list of
    classes, and other ones are refused there. Photos of one name from several folders get numbers; the JSON says which
    photo it is about.

    Args:
        overlays: Whether to draw the overlays.
    """

    def __init__(self, overlays: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.overlays = overlays
        self.written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the names of the classes, and say how photos and words are taken."""
        assert isinstance(pl_module, SegmentationModule)
        self.written = 0
        folders = [(task, self._folder(trainer, pl_module, task.name)) for task in pl_module.data.evaluation_tasks]
        for task, folder in folders:
            check_same_classes(folder, task.vocabulary)
        if not trainer.is_global_zero:
            return
        for task, folder in folders:
            write_text(folder / f"{CLASSES}.json", json.dumps(list(task.vocabulary.classes), indent=1) + "\n")
            print(describe(pl_module, task.vocabulary), flush=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the files of a batch."""
        assert isinstance(pl_module, SegmentationModule)
        evaluation = pl_module.evaluation.datasets[dataloader_idx]
        folder = self._folder(trainer, pl_module, evaluation.task.name)
        found: list[Segmentation] = prediction
        paths = [str(Path(path).resolve()) for path in batch["path"]] if "path" in batch else [None] * len(found)
        for picture, path in zip(as_pictures(found, batch), paths, strict=True):
            target = own_target(target_below(folder, picture.id), path)
            write_prediction(picture, evaluation.segmenter.vocabulary, target, self.overlays, pl_module.title, path)
            self.written += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the files are."""
        print(f"{self.written} images -> {Path(trainer.default_root_dir) / 'predictions'}")

    def _folder(self, trainer: Trainer, module: SegmentationModule, dataset: str) -> Path:
        folder = Path(trainer.default_root_dir) / "predictions"
        return folder if len(module.data.evaluation_tasks) == 1 else folder / dataset


def target_below(folder: Path, id: str) -> Path:
    """Give the path of the files of an image, whose id comes from data that nobody has checked.

    Raises:
        InputError: The id leaves the folder, or no file can have it.
    """
    # One more for those that have one already, so that no two images share a path.
    return path_below(folder, f"{id}_" if id.rstrip("_") == CLASSES else id)


def own_target(target: Path, photo: str | None) -> Path:
    """Leave what an earlier command wrote for another photo of the same name: this one gets a number.

    Args:
        target: Where the files of a photo of this name belong, without suffixes.
        photo: Path of the photo; None where there is no file, then the name alone counts.
    """
    own = target
    for number in itertools.count(2):
        if photo is None or _photo_of(own) in (None, photo):
            break
        own = target.with_name(f"{target.name}-{number}")
    return own


def _photo_of(target: Path) -> str | None:
    record = _with_suffix(target, ".json")
    if not record.is_file():
        return None
    photo: str | None = json.loads(record.read_text(encoding="utf-8")).get("photo")
    return photo


def check_same_classes(folder: Path, vocabulary: Vocabulary) -> None:
    """Refuse a folder with label maps of other classes.

    Raises:
        InputError: Their indices mean something else.
    """
    names = folder / f"{CLASSES}.json"
    if not names.is_file() or next(folder.rglob("*.labels.png"), None) is None:
        return
    there = json.loads(names.read_text(encoding="utf-8"))
    if there != list(vocabulary.classes):
        raise InputError(
            f"{folder} holds label maps of other classes ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}); "
            "choose another --run_dir (a trained run's weights go along with --ckpt_path RUN_DIR/checkpoints/last.ckpt)"
            ", or remove that folder."
        )


def describe(module: SegmentationModule, vocabulary: Vocabulary) -> str:
    """Say at what size photos go through a method, and which names of the classes count."""
    windows = module.inference
    how = f", in windows of {windows.crop_size}" if isinstance(windows, SlidingWindow) else ""
    most = photo_pixels(module.predicts_masks, windows, len(vocabulary))
    said = (
        f"{module.title}, {len(vocabulary)} classes: photos go through with "
        f"{module.data.evaluation_transform}{how} (--data.evaluation_transform); label maps have the photo's "
        f"size, those of more than {most / 1e6:.1f} megapixels enlarged from that many."
    )
    if module.synonyms == "first" and any(len(names) > 1 for names in vocabulary.synonyms):
        said += (
            "\nOnly the first name of each class counts, as the method's settings say; --model.synonyms max lets all."
        )
    if not module.clip.pretrained:
        said += "\nIts CLIP has random weights and knows no word: unless it was trained here, the answer means nothing."
    return said


def write_prediction(
    picture: Picture,
    vocabulary: Vocabulary,
    target: Path,
    overlay: bool = True,
    method: str = "",
    photo: str | None = None,
) -> None:
    """Write the files of one image.

    Args:
        picture: The image and what was found in it.
        vocabulary: The classes.
        target: Where to, without the suffixes.
        overlay: Whether to draw the overlay.
        method: Who predicted, for the overlay and the JSON.
        photo: Path of the photo, for the JSON; None where there is no file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    labels, segments = picture.prediction, picture.segments
    Image.fromarray(labels.astype(np.uint16)).save(_with_suffix(target, ".labels.png"))
    if overlay:
        Image.fromarray(draw_overlay(picture, vocabulary, method)).save(_with_suffix(target, ".overlay.png"))
    shares = np.bincount(labels.ravel(), minlength=len(vocabulary)) / labels.size
    record: dict[str, Any] = {
        "id": picture.id,
        "method": method,
        **({"photo": photo} if photo is not None else {}),
        "size": list(labels.shape),
        "share": {c: round(float(s), 6) for c, s in zip(vocabulary.classes, shares, strict=True)},
    }
    if segments is not None:
        Image.fromarray(segments.ids.astype(np.uint16)).save(_with_suffix(target, ".panoptic.png"))
        areas = np.bincount(segments.ids.ravel(), minlength=len(segments.classes) + 1)[1:]
        record["segments"] = [
            {"id": number, "class": vocabulary.classes[label], "area": int(area)}
            for number, (label, area) in enumerate(zip(segments.classes, areas, strict=True), start=1)
        ]
    _with_suffix(target, ".json").write_text(json.dumps(record, indent=1) + "\n")


def _with_suffix(path: Path, suffix: str) -> Path:
    # `Path.with_suffix` would cut an id such as "frame.0001" at its dot.
    return path.with_name(path.name + suffix)
