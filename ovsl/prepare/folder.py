"""Images and masks of your own as a release: what `FolderSource` reads, written down once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ovsl.data.folder import LISTS, FolderSource, read_list
from ovsl.errors import InputError
from ovsl.prepare.layout import Item, Labelled, Layout, Places, Release
from ovsl.vocabulary import Vocabulary, as_vocabulary

SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val"), "test": ("test",)}
"""Folders of images that say which split they are."""


@dataclass(frozen=True)
class OwnFolder(Layout):
    """Images and masks in two folders, in one, or in a list.

    Args:
        images: Folder of the images below the given one.
        masks: Folder of the masks, likewise; None where they lie among the images.
        mask_suffix: What the name of a mask has more than that of its image.
        test_share: Share of the images that becomes the test split, where neither folders nor the list say so.
        colors: See `FolderSource`.
        ignore_colors: See `FolderSource`.
    """

    images: str = "images"
    masks: str | None = "masks"
    mask_suffix: str = ""
    test_share: float = 0.2
    colors: list[str] | str | None = None
    ignore_colors: list[str] | None = None
    remedy: ClassVar[str] = "mend the mask, or set --vocabulary, --colors or --ignored"

    def words(self) -> Vocabulary:
        """See `Layout`; a file of your own, or a shipped vocabulary."""
        return as_vocabulary(self.vocabulary)

    def find(self, root: Path, splits: Sequence[str] | None = None) -> Release:
        """See `Layout`; the given path may be a list of images and masks.

        The splits are those of the list, or the folders `train`, `val` and `test` of the images, or a share by chance.
        """
        if root.suffix.lower() in LISTS:
            parts = sorted({pair.split for pair in read_list(root) if pair.split}) or ["train", "test"]
            sources = {part: self._source(str(root), None, part) for part in parts}
        else:
            images = root / self.images
            masks = None if self.masks is None else root / self.masks
            folders = {
                split: name for split, names in SPLIT_FOLDERS.items() for name in names if (images / name).is_dir()
            }
            if folders:
                sources = {
                    split: self._source(str(images / name), None if masks is None else str(masks / name), None)
                    for split, name in folders.items()
                }
            else:
                sources = {
                    part: self._source(str(images), None if masks is None else str(masks), part)
                    for part in ("train", "test")
                }
        if unknown := [split for split in splits or () if split not in sources]:
            raise InputError(f"'{root}' has no split '{unknown[0]}': use {', '.join(sources)}.")
        return Release(
            {
                split: [Item(pair.id, pair.image, {"semantic": pair.mask}) for pair in source.pairs]
                for split, source in sources.items()
                if splits is None or split in splits
            }
        )

    def labelled(self, item: Item) -> Labelled:
        """See `Layout`."""
        file = item.labels["semantic"]
        return Labelled(self.relabel(self._source("").labels(file), file))

    def places(self, part: str) -> Places:
        """See `Layout`; `find` looks for them."""
        return {}

    def items(self, found: Mapping[str, Path], part: str) -> list[Item]:
        """See `Layout`; `find` lists them."""
        return []

    def _source(self, images: str, masks: str | None = None, split: str | None = None) -> FolderSource:
        return FolderSource(
            images, masks, self.mask_suffix, split, self.test_share, self.colors, self.ignore_colors,
            ignore_index=self.ignored,
        )  # fmt: skip


def own_folder(vocabulary: str, **options: object) -> OwnFolder:
    """Give a folder of your own, see `OwnFolder`."""
    return replace(OwnFolder("your vocabulary", vocabulary), **options)  # type: ignore[arg-type]
