"""`ovsl prepare`: official releases, and folders of your own, as Parquet files that every verb takes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovsl.data.catalogue import entry
from ovsl.data.local_files import data_folder
from ovsl.errors import InputError, StoppedError
from ovsl.parsing import Parser
from ovsl.prepare import (
    LAYOUTS,
    Conversion,
    Description,
    Layout,
    Release,
    own_folder,
    painted_coco_object_81,
    plan_conversion,
)
from ovsl.prepare.conversion import size_of
from ovsl.prepare.hub import check_push, push
from ovsl.progress import counting

FOLDER_OPTIONS = ("images", "masks", "mask_suffix", "test_share", "colors", "ignore_colors", "ignored")


def main(args: Sequence[str]) -> None:
    """`ovsl prepare NAME|folder --from DIR [--to DIR] [--push_to OWNER/REPO] [--splits ...] [--workers N]`."""
    parser = Parser(
        prog="ovsl prepare",
        description="Make Parquet files of an official release, or of a folder of your own. The same command again "
        "goes on where it was stopped.",
    )
    parser.add_argument("name", type=str, help=f"folder, or one of {', '.join(LAYOUTS)}.")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="Where the release was unpacked.")
    parser.add_argument(
        "--to", dest="target", type=Path | None, default=None, help="Folder to make; default that of the catalogue."
    )
    parser.add_argument("--splits", type=list[str] | None, default=None, help="Only these, such as '[validation]'.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Processes.")
    parser.add_argument("--files", type=int | None, default=None, help="Files of each split; default up to 64.")
    parser.add_argument("--push_to", type=str | None, default=None, help="OWNER/REPO of the Hub to upload to.")
    parser.add_argument("--private", type=bool, default=True, help="Whether a repository that is made is private.")
    parser.add_argument(
        "--painted", type=bool, default=False, help="coco_object_81: of instance masks, not of COCO-Stuff's maps."
    )
    parser.add_argument("--vocabulary", type=list[str] | str | None, default=None, help="folder: its classes.")
    parser.add_argument("--images", type=str, default="images", help="folder: of the images, below --from.")
    parser.add_argument("--masks", type=str | None, default="masks", help="folder: of the masks; null: as the images.")
    parser.add_argument("--mask_suffix", type=str, default="", help="folder: what names of masks have more.")
    parser.add_argument("--test_share", type=float, default=0.2, help="folder: share that becomes the test split.")
    parser.add_argument("--colors", type=list[str] | str | None, default=None, help="folder: as of FolderSource.")
    parser.add_argument("--ignore_colors", type=list[str] | None, default=None, help="folder: likewise.")
    parser.add_argument("--ignored", type=int, default=255, help="folder: value of no label.")
    config = parser.parse_args(list(args)).as_dict()
    if config["push_to"] is not None:
        check_push(config["push_to"])
    conversion = _plan(config)
    _announce(conversion)
    if conversion.complete:
        print(f"'{conversion.target}' is complete already.")
    else:
        _run(conversion, max(1, config["workers"]))
    if config["push_to"] is not None:
        print(f"pushed: {push(conversion.target, config['push_to'], config['private'])}")


def _plan(config: dict[str, Any]) -> Conversion:
    name, target, source = config["name"], config["target"], config["source"].expanduser()
    if name == "folder":
        if config["vocabulary"] is None:
            raise InputError("Which classes do the masks have? Give --vocabulary: a file, a list of words or a name.")
        options = {key: config[key] for key in FOLDER_OPTIONS}
        layout: Layout = own_folder(config["vocabulary"], **options)
        if target is None:
            raise InputError("Where to? Give --to DIR.")
        return plan_conversion(layout, source, target, _describe_own(layout, target), config["splits"], config["files"])
    if name not in LAYOUTS:
        entry(name)
        raise InputError(f"There is nothing to prepare of '{name}': use folder, or one of {', '.join(LAYOUTS)}.")
    if config["painted"] and name != "coco_object_81":
        raise InputError(f"'{name}' is not painted of instance masks: leave painted out.")
    known, layout = entry(name), painted_coco_object_81() if config["painted"] else LAYOUTS[name]()
    assert known.files is not None

    def describe(release: Release, plan: str) -> Description:
        return Description(
            name, known.title, layout.words(), release.counts, plan, release.panoptic, release.instances, known.counts,
            release.notes, known.homepage, known.licence,
        )  # fmt: skip

    target = target or data_folder() / known.files
    return plan_conversion(layout, source, target, describe, config["splits"], config["files"])


def _describe_own(layout: Layout, target: Path) -> Any:
    def describe(release: Release, plan: str) -> Description:
        return Description("folder", target.name, layout.words(), release.counts, plan, notes=release.notes)

    return describe


def _announce(conversion: Conversion) -> None:
    description = conversion.description
    found = ", ".join(f"{split} {count}" for split, count in description.counts.items())
    kinds = ["classes"]
    kinds += ["panoptic maps"] if description.panoptic else []
    kinds += ["instances"] if description.instances else []
    print(f"{description.title}: {found} images with {', '.join(kinds)}.")
    for remark in (*description.differences(), *description.notes):
        print(f"  note: {remark}.")


def _run(conversion: Conversion, workers: int) -> None:
    waiting = sum(len(task.shard.items) for task in conversion.waiting())
    total = sum(conversion.description.counts.values())
    if waiting < total:
        print(f"Going on: {total - waiting} of {total} images are done.")
    start = time.monotonic()
    try:
        with counting(total, "Converting images", total - waiting) as advance:
            conversion.run(workers, advance)
    except KeyboardInterrupt as error:
        raise StoppedError("Stopped; what is finished stays, and the same command goes on.") from error
    seconds = time.monotonic() - start
    print(
        f"{conversion.target}: {len(conversion.tasks)} files, {size_of(conversion.target) / 1e6:.1f} MB, "
        f"{waiting / max(seconds, 1e-3):.0f} images/s."
    )
