"""What stands beside the files: a dataset card for people and the Hub, and `ovsl.json` for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from ovsl import __version__
from ovsl.vocabulary import Vocabulary

LICENCES = {
    "Apache-2.0": "apache-2.0",
    "BSD-3-Clause": "bsd-3-clause",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
}
"""Names that the Hub has for licences; all others are `other` to it."""


@dataclass(frozen=True)
class Description:
    """What is written down of a converted dataset.

    Attributes:
        name: Its name in the catalogue, or that of its folder.
        title: What it is.
        vocabulary: Its classes.
        counts: Images of each split.
        plan: What it was made of, see `ovsl.prepare.writer.plan_of`.
        panoptic: Whether it has panoptic maps.
        instances: Whether it has the masks of mask AP.
        documented: Images of each split of the release, where they are known.
        notes: What was not there.
        homepage: Where the release comes from.
        licence: Its licence.
    """

    name: str
    title: str
    vocabulary: Vocabulary
    counts: Mapping[str, int]
    plan: str
    panoptic: bool = False
    instances: bool = False
    documented: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    homepage: str | None = None
    licence: str | None = None

    def differences(self) -> list[str]:
        """Say where the numbers of images are not the documented ones."""
        return [
            f"{split} has {self.counts.get(split, 0)} images, where {count} are documented"
            for split, count in self.documented.items()
            if self.counts.get(split) != count
        ]

    def as_json(self) -> str:
        """Make the content of `ovsl.json`."""
        facts: dict[str, Any] = {
            **asdict(self),
            "vocabulary": self.vocabulary.name,
            "classes": list(self.vocabulary.classes),
            "ignore_index": self.vocabulary.ignore_index,
            "tool": f"ovsl {__version__}",
        }
        return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"

    def as_card(self) -> str:
        """Make the content of `README.md`."""
        header = {
            "pretty_name": self.title,
            "license": LICENCES.get(self.licence or "", "other"),
            "task_categories": ["image-segmentation"],
            "tags": ["semantic-segmentation", *(["panoptic-segmentation"] if self.panoptic else []), "ovsl"],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"{split}-*.parquet"} for split in self.counts],
                }
            ],
        }
        ignored = self.vocabulary.ignore_index
        columns = [
            "- `image_id`: name of the image in the release.",
            "- `image`: the encoded image of the release (its bytes, unless the notes below say otherwise).",
            f"- `mask`: PNG of class indices, {'8' if ignored == 255 else '16'} bits; {ignored} is no label.",
            "- `width`, `height`: of the image, in pixels.",
        ]
        if self.panoptic:
            columns += [
                "- `panoptic`: PNG of segment ids, R + 256 G + 65536 B; 0 is no segment.",
                "- `segments_info`: its segments; `category_id` is a class index.",
            ]
        if self.instances:
            columns.append("- `instances`: true masks of things, which may overlap, as COCO's run-length codes.")
        things = self.vocabulary.things or [None] * len(self.vocabulary)
        kinds = {True: "thing", False: "stuff", None: ""}
        classes = [
            f"| {index} | {name} | {kinds[thing]} |"
            for index, (name, thing) in enumerate(zip(self.vocabulary.classes, things, strict=True))
        ]
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        remarks = [*self.differences(), *self.notes] or ["Numbers of images are as documented."]
        return "\n".join(
            [
                "---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(), "---",
                f"# {self.title}", "",
                f"Images: {counts}. Classes: vocabulary `{self.vocabulary.name}` of ovsl, {len(self.vocabulary)}.", "",
                f"Release: {self.homepage or 'unknown'}. Licence: {self.licence or 'unknown'}. Whoever passes these "
                "files on has to keep to it.", "",
                f"Made from the official release by `ovsl prepare {self.name}` (ovsl {__version__}).", "",
                "## Columns", "", *columns, "",
                "## Notes", "", *(f"- {remark}" for remark in remarks), "",
                "## Classes", "", "| label | class | kind |", "|---:|---|---|", *classes, "",
            ]
        )  # fmt: skip
