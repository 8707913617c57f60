"""Datasets by name: where their files are, how they are laid out, and which vocabulary their labels index.

The facts stand in `catalogue.json` and nowhere else. Local files have one layout for all datasets, the columns of
`LOCAL_COLUMNS`; repositories of the Hub have their own.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Literal

import numpy as np

from ovsl.data.local_files import data_folder, locate
from ovsl.data.parquet import HubSource, ParquetSource
from ovsl.data.sources import INVALID_LABEL, LABEL_VALUES, LabelTransform, Row, Source, label_table
from ovsl.data.toy import ToySource
from ovsl.detections import AveragePrecisionRules
from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

LOCAL_COLUMNS = {"image_column": "image", "mask_column": "mask", "id_column": "image_id"}
PANOPTIC_COLUMNS = {"panoptic_column": "panoptic", "segments_column": "segments_info"}
INSTANCES_COLUMNS = {"instances_column": "instances"}

PROBED_ROWS = 8
"""Rows of an unverified repository that are looked at before it is used."""


@dataclass(frozen=True)
class HubRepository:
    """A repository of the Hub that holds a dataset.

    Args:
        repo: `owner/name`.
        splits: Its name of each split of the dataset.
        columns: Its columns, see `ParquetSource`.
        verified: Whether somebody looked at its columns and label values; otherwise they are probed before use.
        note: What is documented, and what is only expected.
        label_transform: What its label values mean, see `label_table`.
        ignore_index: Its label value for "no label".
        revision: Branch, tag or commit.
    """

    repo: str
    splits: dict[str, str]
    columns: dict[str, str]
    verified: bool
    note: str
    label_transform: LabelTransform = "identity"
    ignore_index: int = 255
    revision: str | None = None


@dataclass(frozen=True)
class CatalogueEntry:
    """What is known of a dataset.

    Args:
        name: Name of the dataset, that of its scores too.
        title: What it is.
        vocabulary: Vocabulary that its labels index.
        files: Folder of its Parquet files, with the columns of `LOCAL_COLUMNS`; None for a generated dataset.
        splits: Split of the files for each split of the dataset. Benchmarks whose test labels are not published are
            tested on their validation images.
        counts: Documented number of images in each split of the files.
        ignore_index: Label value of the files for "no label".
        panoptic: Whether the files hold panoptic maps (`PANOPTIC_COLUMNS`): `never`; `optional`, where they are
            read on demand; or `default`, where they are read unless told not to.
        evaluation_size: Short side and largest long side of the images in evaluation, by MMSegmentation's protocol and,
            for street scenes and COCO panoptic, FC-CLIP's; None leaves them as they are.
        average_precision: Whose rules mask AP follows.
        generated: Arguments of `ToySource` for each split.
        hub: Repository of the Hub with the same images and labels, where one is known.
        homepage: Where the release comes from.
        licence: Its licence, where it is known.
        formerly: Name of its scores before there was a catalogue.
    """

    name: str
    title: str
    vocabulary: str
    files: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ignore_index: int = 255
    panoptic: Literal["never", "optional", "default"] = "never"
    evaluation_size: dict[str, int] | None = None
    average_precision: AveragePrecisionRules = "coco"
    generated: dict[str, dict[str, int]] | None = None
    hub: HubRepository | None = None
    homepage: str | None = None
    licence: str | None = None
    formerly: str | None = None

    @property
    def available_splits(self) -> tuple[str, ...]:
        """Split of the dataset, such as `train`, `validation` and `test`."""
        return tuple(self.generated or self.splits)


def catalogue() -> dict[str, CatalogueEntry]:
    """All entries by name."""
    return dict(_entries())


def entry(name: str) -> CatalogueEntry:
    """Look a dataset up.

    Raises:
        InputError: There is none of this name.
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    renamed = [each.name for each in entries.values() if each.formerly == name]
    close = renamed or difflib.get_close_matches(name, entries)
    if renamed:
        hint = f"it is called '{renamed[0]}'"
    elif close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    else:
        hint = f"use one of {', '.join(entries)}"
    raise InputError(
        f"There is no dataset '{name}' in the catalogue: {hint}; a dataset of your own needs a vocabulary and sources "
        "that are written out."
    )


class Catalogued(Source):
    """A split of a dataset of the catalogue: local Parquet files where they exist, else its repository of the Hub.

    Rows, order and so the resume of a run are those of the source underneath.

    Args:
        name: Name in the catalogue, such as `ade20k_150`.
        split: `train`, `validation`, `test`, or what else the entry has.
        panoptic: Whether rows have segments; None for datasets whose labels are panoptic by default.
        instances: Whether the true masks of mask AP are read from the column `instances`.

    Raises:
        InputError: There is no such dataset or split, or no panoptic map where one is asked for.
    """

    def __init__(self, name: str, split: str = "train", panoptic: bool | None = None, instances: bool = False) -> None:
        self.entry = entry(name)
        if split not in self.entry.available_splits:
            raise InputError(
                f"Dataset '{name}' has no split '{split}': use one of {', '.join(self.entry.available_splits)}."
            )
        if panoptic and self.entry.panoptic == "never":
            raise InputError(f"Dataset '{name}' has no panoptic maps: leave panoptic out.")
        self.split = split
        self.panoptic = self.entry.panoptic == "default" if panoptic is None else panoptic
        self.has_instances = instances

    @property
    def name(self) -> str:  # type: ignore[override] # read from the source underneath
        """See `Source`; names the files or the repository, and so looks for them."""
        return self.source.name

    @property
    def label_transform(self) -> LabelTransform:  # type: ignore[override] # read from the source underneath
        """See `Source`."""
        return self.source.label_transform

    @property
    def ignore_index(self) -> int:  # type: ignore[override] # read from the source underneath
        """See `Source`."""
        return self.source.ignore_index

    @cached_property
    def source(self) -> Source:
        """The source underneath.

        Raises:
            InputError: The data is neither here nor on the Hub.
        """
        known = self.entry
        if known.generated is not None:
            return ToySource(**known.generated[self.split], panoptic=self.panoptic)
        assert known.files is not None
        if locate(known.files).exists():
            columns = LOCAL_COLUMNS | (PANOPTIC_COLUMNS if self.panoptic else {})
            columns |= INSTANCES_COLUMNS if self.has_instances else {}
            return ParquetSource(known.files, known.splits[self.split], ignore_index=known.ignore_index, **columns)
        missing = (
            f"Dataset '{known.name}' is not here: there is no folder '{known.files}' in the current folder or in "
            f"'{data_folder()}'"
        )
        remedy = (
            f"make it of the release ({known.homepage}) with `ovsl prepare {known.name} --from DIR`, or set OVSL_DATA "
            "to the folder that holds it"
        )
        if known.hub is None or self.panoptic or self.has_instances or self.split not in known.hub.splits:
            raise InputError(f"{missing}, and no repository of the Hub is known to hold it: {remedy}.")
        try:
            return _open(known.hub, self.split, Vocabulary.load(known.vocabulary))
        except InputError as error:
            raise InputError(
                f"{missing}, and the Hub's '{known.hub.repo}' cannot be used ({error}): {remedy}."
            ) from error

    def __len__(self) -> int:
        return len(self.source)

    def row(self, index: int) -> Row:
        """See `Source`."""
        return self.source.row(index)

    def columns(self) -> dict[str, str]:
        """See `Source.columns`."""
        return self.source.columns()

    def fingerprint(self) -> dict[str, Any]:
        """See `Source.fingerprint`."""
        return self.source.fingerprint()

    def pin(self, fingerprint: Mapping[str, Any]) -> None:
        """See `Source.pin`."""
        self.source.pin(fingerprint)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """See `Source`."""
        return self.source.order(seed, epoch)

    def portrait(self) -> np.ndarray:
        """See `Source`."""
        return self.source.portrait()


def as_source(
    given: Source | str | None, split: str, panoptic: bool | None = None, instances: bool = False
) -> Source | None:
    """Take a source as it is, and `NAME` or `NAME/SPLIT` as that entry of the catalogue.

    Args:
        given: A source, the name of a dataset, or nothing.
        split: Split of a name that says none.
        panoptic: See `Catalogued`; only where the dataset has panoptic maps.
        instances: See `Catalogued`.
    """
    if not isinstance(given, str):
        return given
    name, _, named_split = given.partition("/")
    wanted = panoptic if entry(name).panoptic != "never" else None
    return Catalogued(name, named_split or split, wanted, instances)


@lru_cache
def _entries() -> dict[str, CatalogueEntry]:
    text = resources.files("ovsl.data").joinpath("catalogue.json").read_text(encoding="utf-8")
    entries = {}
    for name, facts in json.loads(text).items():
        hub = HubRepository(**facts.pop("hub")) if "hub" in facts else None
        entries[name] = CatalogueEntry(name, hub=hub, **facts)
    return entries


def _open(hub: HubRepository, split: str, vocabulary: Vocabulary) -> HubSource:
    """Open the repository's source; what the catalogue only expects of it is looked at first."""
    source = HubSource(
        hub.repo,
        hub.splits[split],
        revision=hub.revision,
        label_transform=hub.label_transform,
        ignore_index=hub.ignore_index,
        **hub.columns,
    )
    if not hub.verified:
        _probe(source, vocabulary)
        logger.warning(
            "The first masks of %s fit its entry of the catalogue, but nobody has verified it (%s).",
            source.name,
            hub.note,
        )
    return source


def _probe(source: HubSource, vocabulary: Vocabulary) -> None:
    """Refuse label values that contradict what is expected of a source."""
    table = label_table(source.label_transform, source.ignore_index, len(vocabulary), vocabulary.ignore_index)
    labelled = False
    for index in range(min(PROBED_ROWS, len(source))):
        values = source.row(index).semantic
        assert values is not None
        found = np.unique(values)
        known = (found >= 0) & (found < LABEL_VALUES)
        classes = np.where(known, table[np.where(known, found, 0)], INVALID_LABEL)
        if (classes == INVALID_LABEL).any():
            raise InputError(
                f"column '{source.mask_column}' of {source.name} holds the label value "
                f"{int(found[classes == INVALID_LABEL][0])} in row {index}, against what the catalogue expects of it"
            )
        labelled |= bool((classes != vocabulary.ignore_index).any())
    if not labelled:
        raise InputError(
            f"column '{source.mask_column}' of {source.name} has no label in the first {PROBED_ROWS} rows, against "
            "what the catalogue expects of it"
        )
