"""One dataset to evaluate on: what the configuration says of it, and what the catalogue adds."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from ovsl.data.batches import EvaluationTask
from ovsl.data.catalogue import as_source, catalogue, entry
from ovsl.data.regions import RegionMaps
from ovsl.data.sources import Source
from ovsl.data.transforms import EvaluationTransform
from ovsl.detections import AveragePrecisionRules
from ovsl.errors import InputError
from ovsl.results.tables import FIGURES
from ovsl.vocabulary import Vocabulary, as_vocabulary


@dataclass
class EvaluationSet:
    """One dataset to evaluate on. Under the name of a dataset of the catalogue, what is left out comes from there.

    Args:
        vocabulary: Classes of the labels: a shipped name, a list of words, or a text, JSON or CSV file, see
            `ovsl.vocabulary.as_vocabulary`.
        split: Zero-shot split of that vocabulary, which says which classes are seen. None leaves it to the
            overlap with the classes that the method was trained on.
        validation: Source of `validate` and of the validation in `fit`, or a name of the catalogue.
        test: Source of `test` and `predict`, likewise.
        transform: Resizing of its images; None takes the data module's `evaluation_transform`, and where that is
            None too, the sizes of the catalogue.
        published: Published figures of this row in percent, as printed, such as `{mIoU: 33.3}`; shown beside ours.
        regions: Where region maps come from, for methods that go by them; None takes the data module's.
        average_precision: Whose rules mask AP follows: `coco`, or `cityscapes` as its own scripts; None takes the
            catalogue's, else `coco`.
        instances: Whether the truth of mask AP is read from a column of its own (COCO's `instances` files) and not
            from the things of the panoptic maps; for sources of the catalogue, others name an `instances_column`.
        episodes: Whether each image is asked for one unseen class at a time against "others", the protocol of few-shot
            segmentation, in place of all classes at once.

    Raises:
        InputError: A published figure has an unknown name.
    """

    vocabulary: list[str] | str | None = None
    split: str | None = None
    validation: Source | str | None = None
    test: Source | str | None = None
    transform: EvaluationTransform | None = None
    published: dict[str, float] | None = None
    regions: RegionMaps | None = None
    average_precision: AveragePrecisionRules | None = None
    instances: bool = False
    episodes: bool = False

    def __post_init__(self) -> None:
        for figure in self.published or {}:
            if figure not in FIGURES:
                close = difflib.get_close_matches(figure, FIGURES, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(FIGURES)}."
                raise InputError(f"There is no figure '{figure}' to compare a published one with: {hint}")

    def complete(
        self, name: str, panoptic: bool | None = None, transform: EvaluationTransform | None = None
    ) -> EvaluationSet:
        """Fill in what is left out, from the catalogue where it has the dataset.

        Args:
            name: Name of the dataset.
            panoptic: See `Catalogued`.
            transform: Resizing of images where the set says none.

        Returns:
            The set with a vocabulary and a transform; a dataset that is not in the catalogue may lack a source.

        Raises:
            InputError: Something is left out, and there is no dataset of this name in the catalogue.
        """
        written_out = self.vocabulary is not None and (self.validation is not None or self.test is not None)
        known = entry(name) if name in catalogue() or not written_out else None
        default = None if known is None else known.name
        size = (known and known.evaluation_size) or {}
        return replace(
            self,
            vocabulary=known.vocabulary if known is not None and self.vocabulary is None else self.vocabulary,
            validation=as_source(
                default if self.validation is None else self.validation, "validation", panoptic, self.instances
            ),
            test=as_source(default if self.test is None else self.test, "test", panoptic, self.instances),
            average_precision=self.average_precision or (known.average_precision if known is not None else "coco"),
            transform=self.transform or transform or EvaluationTransform(size.get("short_side"), size.get("max_size")),
        )

    def task(self, name: str, vocabulary: Vocabulary) -> EvaluationTask:
        """Say what is evaluated, for `ovsl.evaluation`."""
        rules = self.average_precision or "coco"
        return EvaluationTask(name, vocabulary, self.published or {}, rules, self.episodes)

    def load_vocabulary(self) -> Vocabulary:
        """Load the classes, seen marks by the split.

        Raises:
            InputError: The set is not complete, or there is no such vocabulary or split.
        """
        if self.vocabulary is None:
            raise InputError("An evaluation dataset has no vocabulary: name one.")
        return as_vocabulary(self.vocabulary, self.split)
