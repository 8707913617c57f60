"""`ovsl data check`: look through a dataset before anything is trained on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ovsl.data import SegmentationDataModule
from ovsl.data.catalogue import Catalogued, entry
from ovsl.data.check import described, look_through, shared_images
from ovsl.data.sources import Source
from ovsl.errors import InputError
from ovsl.given import configuration_files
from ovsl.parsing import Parser
from ovsl.results.drawing import draw_overlays
from ovsl.runs.files import whole_file, write_text
from ovsl.tools.models import ConfigurationFile
from ovsl.vocabulary import Vocabulary

SHEET = 12
"""Images on a sheet."""


class DataFile(ConfigurationFile):
    """Takes what concerns the data from a configuration file, whatever else is in it."""

    sections = ("data",)


def main(args: Sequence[str]) -> int:
    """`ovsl data check NAME | -c FILE [--data.OPTION ...] [--samples 200] [--to DIR]`.

    Returns:
        1 where something is suspicious, else 0.
    """
    parser = Parser(
        prog="ovsl data",
        description="Look through samples of a dataset of the catalogue, or of a configuration: columns, sizes, "
        "labels, and what is suspicious. The status is 1 where something is.",
    )
    parser.add_argument("action", choices=["check"], help="What to do.")
    parser.add_argument("name", type=str | None, nargs="?", default=None, help="A dataset of the catalogue.")
    parser.add_argument("-c", "--config", action=DataFile, help=ConfigurationFile.HELP)
    parser.add_subclass_arguments(SegmentationDataModule, "data", required=False, fail_untyped=False)
    parser.add_argument("--samples", type=int, default=200, help="Images of each split to read; 0 reads all.")
    parser.add_argument("--to", type=Path, default=Path("runs/data"), help="Folder for the sheets and a JSON file.")
    config = parser.parse_args(list(args))
    if (config.name is None) == (config.data is None):
        raise InputError("Which dataset? Give a name of the catalogue, or -c FILE with a data section.")
    name = config.name
    if name is None:
        module = parser.instantiate_classes(config).data
        files = configuration_files(args)
        name, sources = files[-1].stem if files else "data", configured(module)
    else:
        sources = catalogued(name)
    return check(name, sources, config.samples or None, config.to)


def check(name: str, sources: Sequence[tuple[str, Source, Vocabulary]], samples: int | None, folder: Path) -> int:
    """Look through splits, print what they hold, and draw a sheet of each.

    Args:
        name: Name of the dataset, that of the files.
        sources: Name, source and vocabulary of each split.
        samples: Images of each split that are read; None for all.
        folder: Where the sheets and `<name>.json` go.

    Returns:
        1 where something is suspicious, else 0.

    Raises:
        InputError: No split can be opened.
    """
    looks, written, failures, opened = [], [], [], set()
    for split, source, vocabulary in sources:
        try:
            if source.name in opened:  # many benchmarks are tested on their validation images
                continue
            opened.add(source.name)
            look, pictures = look_through(split, source, vocabulary, samples, SHEET)
        except InputError as error:
            failures.append(f"{split}: {error}")
            continue
        looks.append(look)
        written.append(look.as_dict(vocabulary))
        print("\n".join(described(look, vocabulary)))
        if pictures:
            sheet = folder / f"{name}-{split.replace('/', '-')}.png"
            with whole_file(sheet) as partial:
                Image.fromarray(draw_overlays(pictures, vocabulary, f"{name}, {split}")).save(partial, "PNG")
            print(f"  sheet    {sheet}")
    for failure in failures:
        print(f"cannot be opened: {failure}")
    if not looks:
        raise InputError(f"No split of '{name}' can be opened; the first: {failures[0]}")
    remarks = [f"{look.split}: {remark}" for look in looks for remark in look.suspicious()] + shared_images(looks)
    print("\n".join(f"suspicious: {remark}" for remark in remarks) or "nothing suspicious")
    result = {"dataset": name, "splits": written, "suspicious": remarks, "not_opened": failures}
    write_text(folder / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return int(bool(remarks))


def catalogued(name: str) -> list[tuple[str, Source, Vocabulary]]:
    """Give the splits of a dataset of the catalogue, with panoptic maps only where they are the default."""
    known = entry(name)
    vocabulary = Vocabulary.load(known.vocabulary)
    return [(split, Catalogued(name, split), vocabulary) for split in known.available_splits]


def configured(data: SegmentationDataModule) -> list[tuple[str, Source, Vocabulary]]:
    """Give what a data module trains and evaluates on."""
    found = []
    if data.train is not None and (words := data.training_vocabulary) is not None:
        found.append(("train", data.train, words))
    for name, dataset in data.evaluation.items():
        for stage, source in (("validation", dataset.validation), ("test", dataset.test)):
            if isinstance(source, Source):
                found.append((f"{name}/{stage}", source, dataset.load_vocabulary()))
    if not found:
        raise InputError("There is no data to look through: set data.train or data.evaluation.")
    return found
