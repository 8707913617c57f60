"""The data module: sources, vocabularies and transforms put together for every verb of the command."""

import logging
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from ovsl.data.batches import EvaluationTask
from ovsl.data.catalogue import Catalogued, as_source
from ovsl.data.evaluation_set import EvaluationSet
from ovsl.data.image_files import find_images
from ovsl.data.loader import SegmentationLoader, as_made, one_thread
from ovsl.data.order import PositionSampler, SectionSampler
from ovsl.data.regions import RegionMaps
from ovsl.data.samples import EvaluationBatches, LabelledRows, TrainingBatches
from ovsl.data.sources import ImageFiles, Source
from ovsl.data.transforms import EvaluationTransform, TrainTransform
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary, as_vocabulary

logger = logging.getLogger(__name__)


class SegmentationDataModule(LightningDataModule):
    """Images with label masks for training and for any number of evaluation datasets, each with its own vocabulary.

    What batches hold is said by `ovsl.data.batches`. The order and augmentation of training batches are functions of
    (seed, position), so a resumed run continues exactly where it stopped, with any number of workers. Training never
    runs out of data: an epoch of the trainer is `rows // global batch` steps, the same on every process. Evaluation
    gives every image exactly once over all processes. Images are never normalised here; methods do that on the device.

    In training, crowd regions of panoptic maps are left out, stuff of one class is one segment, and segments that the
    crop cut away keep their number and class, without a pixel; with `ignore_unseen` segments of unseen classes are left
    out. Evaluation keeps all segments, at the original size.

    Args:
        train: Source of training images, or a dataset of the catalogue (`NAME`, `NAME/SPLIT`); None for none.
        vocabulary: Classes of the training labels: a shipped name, a list of words, or a text, JSON or CSV file; None
            takes the vocabulary of the catalogue.
        split: Zero-shot split of the training vocabulary.
        ignore_unseen: Whether training pixels of unseen classes become `ignore_index` (the inductive setting; the
            images are kept, and the choice of a crop by `category_max_ratio` counts those pixels).
        evaluation: Datasets to evaluate on, by name, that of their scores; for one of the catalogue `{}` is enough.
        train_transform: Augmentation of training samples.
        evaluation_transform: Resizing of evaluation images; None takes the sizes of the catalogue.
        panoptic: Whether to read the panoptic maps of datasets of the catalogue; None: where they are the default.
        regions: Region maps of evaluation images, for methods that go by them; None takes those of the source, if any.
        batch_size: Training samples per process and step.
        evaluation_batch_size: Images per process and step in evaluation.
        num_workers: Worker processes per loader.
        seed: Seed of the order and the augmentation.
        on_error: Undecodable images: `error` stops, `skip` takes the next one in their place, counts and logs them; in
            evaluation it leaves them out, and those that are smaller than a patch of the network.
        group_by_orientation: Whether the images of one process and step are all wider than high, or all not.
    """

    def __init__(
        self,
        train: Source | str | None = None,
        vocabulary: list[str] | str | None = None,
        split: str | None = None,
        ignore_unseen: bool = True,
        evaluation: dict[str, EvaluationSet] | None = None,
        train_transform: TrainTransform | None = None,
        evaluation_transform: EvaluationTransform | None = None,
        panoptic: bool | None = None,
        regions: RegionMaps | None = None,
        batch_size: int = 16,
        evaluation_batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
        on_error: Literal["error", "skip"] = "error",
        group_by_orientation: bool = False,
    ) -> None:
        super().__init__()
        # A small dataset may have no image for some processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("evaluation_batch_size", evaluation_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise InputError(f"data.{name} is {value}: it has to be at least {least}.")
        self.train = as_source(train, "train", panoptic)
        if vocabulary is None and isinstance(self.train, Catalogued):
            vocabulary = self.train.entry.vocabulary
        self.vocabulary = vocabulary
        self.split = split
        self.ignore_unseen = ignore_unseen
        self.evaluation = {
            name: dataset.complete(name, panoptic, evaluation_transform) for name, dataset in (evaluation or {}).items()
        }
        self.train_transform = train_transform or TrainTransform(crop_size=512)
        self.evaluation_transform = evaluation_transform or EvaluationTransform()
        self.regions = regions
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.on_error = on_error
        self.group_by_orientation = group_by_orientation
        # Samples and batches consumed when the checkpoint was written that this run continues.
        self._restored = {"position": 0, "batches": 0}
        self._counted: list[LabelledRows] = []

    @property
    def training_vocabulary(self) -> Vocabulary | None:
        """Vocabulary of the training labels; None without one. Needs no `setup`."""
        return None if self.vocabulary is None else as_vocabulary(self.vocabulary, self.split)

    @property
    def evaluation_vocabularies(self) -> dict[str, Vocabulary]:
        """Vocabulary of each evaluation dataset, in their order. Needs no `setup`.

        Seen classes are those of the dataset's split; without one, the method decides by what it was trained on.
        """
        return {name: dataset.load_vocabulary() for name, dataset in self.evaluation.items()}

    @property
    def evaluation_tasks(self) -> list[EvaluationTask]:
        """What is evaluated, in the order of the evaluation loaders. Needs no `setup`."""
        return [
            # Prediction has a vocabulary without a dataset.
            self.evaluation.get(name, EvaluationSet(vocabulary.name)).task(name, vocabulary)
            for name, vocabulary in self.evaluation_vocabularies.items()
        ]

    def use_photo_transform(self, transform: EvaluationTransform) -> None:
        """Take a method's own size for photos in `predict`; datasets keep theirs."""

    @property
    def position(self) -> int:
        """Training samples consumed so far by all processes, in this run and those it continues."""
        batches = self._batches_done - self._restored["batches"]
        return self._restored["position"] + max(0, batches) * self.batch_size * self._world_size

    @property
    def skipped(self) -> int:
        """Undecodable rows that were skipped so far by this process and its workers."""
        return sum(rows.skipped for rows in self._counted)

    def train_dataloader(self) -> SegmentationLoader:
        """Endless training batches; the loader's length is one pass over the data.

        Raises:
            InputError: There is nothing to train on, or fewer rows than one global batch.
        """
        vocabulary = self.training_vocabulary
        if self.train is None or vocabulary is None:
            raise InputError("There is no training data: set data.train and data.vocabulary.")
        steps = len(self.train) // (self.batch_size * self._world_size)
        if steps == 0:
            raise InputError(
                f"{self.train.name} has {len(self.train)} rows, fewer than one global batch of "
                f"{self.batch_size * self._world_size}: lower data.batch_size."
            )
        hidden = vocabulary.unseen_indices if self.ignore_unseen else []
        portrait = self.train.portrait() if self.group_by_orientation else None
        rows = self._rows(self.train, vocabulary)
        return self._loader(
            TrainingBatches(rows, self.train_transform, self.batch_size, self.seed, hidden, portrait),
            PositionSampler(lambda: self.position, self.batch_size, steps, self._rank, self._world_size),
            persistent=True,
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Widen the labels of a training batch: they travel as 8 or 16 bits, and losses take int64."""
        if isinstance(semantic := batch.get("semantic"), Tensor):
            batch["semantic"] = semantic.long()
        return batch

    def val_dataloader(self) -> list[SegmentationLoader]:
        """One loader per evaluation dataset, in the order of `evaluation`."""
        return self._evaluation_loaders("validation")

    def test_dataloader(self) -> list[SegmentationLoader]:
        """One loader per evaluation dataset, in the order of `evaluation`."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> list[SegmentationLoader]:
        """Give the test loaders."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, int]:
        """Position in the training data: samples and batches consumed, whatever has been prefetched."""
        return {"position": self.position, "batches": self._batches_done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue at a saved position, also with another number of processes or another batch size."""
        self._restored = dict(state_dict)

    def teardown(self, stage: str) -> None:
        """Report what was skipped."""
        if self.skipped:
            logger.warning("Skipped %d undecodable rows in this process; each is named above.", self.skipped)

    def _evaluation_loaders(self, stage: Literal["validation", "test"]) -> list[SegmentationLoader]:
        loaders = []
        for name, vocabulary in self.evaluation_vocabularies.items():
            source: Source | None = getattr(self.evaluation[name], stage)
            if source is None:
                raise InputError(
                    f"Evaluation dataset '{name}' has no {stage} source: set data.evaluation.{name}.{stage}."
                )
            rows = self._rows(source, vocabulary)
            transform = self.evaluation[name].transform or self.evaluation_transform
            maps = self.evaluation[name].regions or self.regions
            batches = EvaluationBatches(rows, transform, True, maps and maps.of(name), self._smallest_side)
            loaders.append(self._evaluation_loader(batches))
        return loaders

    def _evaluation_loader(self, batches: EvaluationBatches) -> SegmentationLoader:
        sampler = SectionSampler(
            len(batches.rows.source), self.evaluation_batch_size, self.num_workers, self._rank, self._world_size
        )
        return self._loader(batches, sampler)

    def _loader(
        self,
        batches: TrainingBatches | EvaluationBatches,
        sampler: PositionSampler | SectionSampler,
        persistent: bool = False,
    ) -> SegmentationLoader:
        return SegmentationLoader(
            batches,
            sampler=sampler,
            # The sampler's items are whole batches.
            batch_size=None,
            collate_fn=as_made,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent and self.num_workers > 0,
            worker_init_fn=one_thread,
        )

    def _rows(self, source: Source, vocabulary: Vocabulary) -> LabelledRows:
        rows = LabelledRows(source, vocabulary, self.on_error)
        self._counted.append(rows)
        return rows

    @property
    def _batches_done(self) -> int:
        """Training batches that this process has finished, counted by the trainer over all resumed runs."""
        if self.trainer is None:
            return 0
        # `processed` counts a batch before the callbacks that may save a checkpoint run; `completed` comes after them.
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed

    @property
    def _smallest_side(self) -> int:
        """Pixels below which the method takes no image."""
        return 1 if self.trainer is None else getattr(self.trainer.lightning_module, "smallest_side", 1)

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size


class PredictionData(SegmentationDataModule):
    """Image files to be labelled with any words.

    Batches are `{"image": [uint8 (3, H, W)], "original_size": [(H0, W0)], "id": [str], "path": [str]}`; the id is the
    path below the folder that was given, without its suffix.

    Args:
        images: An image file, a folder (searched with its sub-folders), or a list of both.
        vocabulary: Words, one entry per class, synonyms separated by commas (`["road", "car, automobile"]`); or the
            name of a shipped vocabulary; or a text, JSON or CSV file.
        evaluation_transform: Resizing of the images; None takes the size of the method's published tests.
        regions: Where their region maps come from, for methods that go by them.
        batch_size: Images per process and step.
        num_workers: Worker processes.
        on_error: Undecodable images: `error` stops, `skip` leaves them out, counts and logs them.
    """

    def __init__(
        self,
        images: list[str] | str,
        vocabulary: list[str] | str,
        evaluation_transform: EvaluationTransform | None = None,
        regions: RegionMaps | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        on_error: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__(
            evaluation_transform=evaluation_transform,
            regions=regions,
            evaluation_batch_size=batch_size,
            num_workers=num_workers,
            on_error=on_error,
        )
        self._own_transform = evaluation_transform is not None
        self.images = [images] if isinstance(images, str) else images
        self.words = vocabulary

    def use_photo_transform(self, transform: EvaluationTransform) -> None:
        """Take a method's own size for photos, unless the user gave another."""
        if not self._own_transform:
            self.evaluation_transform = transform

    @property
    def prediction_vocabulary(self) -> Vocabulary:
        """The words, as a vocabulary.

        Raises:
            InputError: There are no words, or no such vocabulary.
        """
        return as_vocabulary(self.words)

    @property
    def evaluation_vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabulary of the words, under the name `images`."""
        return {"images": self.prediction_vocabulary}

    def predict_dataloader(self) -> list[SegmentationLoader]:
        """One loader over all images.

        Raises:
            InputError: A path does not exist, or there is no image.
        """
        files, ids = find_images(self.images)
        rows = self._rows(ImageFiles(files, ids), self.prediction_vocabulary)
        batches = EvaluationBatches(rows, self.evaluation_transform, False, self.regions, self._smallest_side)
        return [self._evaluation_loader(batches)]
