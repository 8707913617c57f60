"""What a checkpoint is: written, read and checked here and nowhere else.

A checkpoint is Lightning's, with one more entry `ovsl` that says what the weights belong to. Weights of the frozen CLIP
are not in it: their name and hash stand for them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ovsl.errors import InputError, NotFiniteError
from ovsl.runs.files import whole_file
from ovsl.runs.sharded import whole
from ovsl.vocabulary import Vocabulary

VALIDATION_OWED = "validation_owed"
"""Entry of a checkpoint that says whether the validation of its step is still to be done."""


@dataclass(frozen=True)
class CLIPIdentity:
    """The frozen CLIP that weights were trained on.

    Args:
        model: Its name.
        pretrained: Tag or file that it came from; None for random weights.
        sha256: Hash of its frozen weights.
    """

    model: str
    pretrained: str | None
    sha256: str

    def __str__(self) -> str:
        return f"{self.model!r} ({self.pretrained or 'random weights'})"


@dataclass(frozen=True)
class CheckpointRecord:
    """What the weights of a checkpoint belong to. Plain types on disk, so that it loads with `weights_only=True`.

    Args:
        method: Import path of the method's class.
        settings: `class_path` and `init_args` that it was built with; None where no command built it.
        clip: The frozen CLIP.
        training_vocabulary: What it trained on; None where that is not known.
        step: Optimiser steps behind the weights.
        validation_owed: Whether the validation of that step is still to be done.
    """

    method: str
    settings: dict[str, Any] | None
    clip: CLIPIdentity
    training_vocabulary: Vocabulary | None = None
    step: int = 0
    validation_owed: bool = False

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> CheckpointRecord:
        """Take the record out of a loaded checkpoint.

        Raises:
            InputError: The checkpoint has none.
        """
        record = checkpoint.get("ovsl")
        if record is None:
            raise InputError("The checkpoint was not written by ovsl; convert official weights with `ovsl convert`.")
        try:
            words, settings = record["training_vocabulary"], record["settings"]
            if not isinstance(settings, dict | None) or not isinstance(checkpoint["state_dict"], Mapping):
                raise TypeError("entries of another type")
            chosen = ((settings or {}).get("init_args") or {}).get("clip")
            named = chosen and (chosen.get("pretrained") is not None or chosen.get("config") is not None)
            if settings and chosen and not named and not record["clip"]["pretrained"]:
                # Random weights did not have to be asked for by name before 0.2.
                chosen = {**chosen, "pretrained": "random"}
                settings = {**settings, "init_args": {**settings["init_args"], "clip": chosen}}
            return cls(
                method=str(record["method"]),
                settings=settings,
                clip=CLIPIdentity(**record["clip"]),
                training_vocabulary=None if words is None else Vocabulary.from_dict(words),
                step=int(checkpoint.get("global_step", 0)),
                validation_owed=bool(checkpoint.get(VALIDATION_OWED)),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"The record in the checkpoint is not one that ovsl wrote ({type(error).__name__}: {error}); take "
                "another checkpoint."
            ) from error

    @classmethod
    def read(cls, path: Path) -> CheckpointRecord:
        """Read the record of a checkpoint file, its weights left on disk.

        Raises:
            InputError: No such file, or none that can be loaded safely.
        """
        return cls.of(load_checkpoint_file(path))

    def to_dict(self) -> dict[str, Any]:
        """Give the `ovsl` entry of a checkpoint; the step is Lightning's own `global_step`."""
        words = self.training_vocabulary
        return {
            "method": self.method,
            "settings": self.settings,
            "clip": vars(self.clip).copy(),
            "training_vocabulary": None if words is None else words.to_dict(),
        }

    def check(self, own: CheckpointRecord, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        """Refuse weights of another method, another CLIP, or another shape of the method.

        Args:
            own: Record of the module that wants the weights.
            expected: What the module needs, by name.
            found: What the checkpoint holds.

        Raises:
            InputError: With what differs and what to do.
        """
        theirs, ours = self.method.rsplit(".", 1)[-1], own.method.rsplit(".", 1)[-1]
        if self.method != own.method:
            raise InputError(
                f"The checkpoint holds {theirs}, but the configuration asks for {ours}; give that method's "
                "configuration, or another checkpoint."
            )
        if self.clip.sha256 != own.clip.sha256:
            if self.clip.pretrained is None and own.clip.pretrained is None and self.clip.model == own.clip.model:
                raise InputError(
                    f"The checkpoint was trained on a random CLIP {self.clip.model!r} of another seed or `config`: "
                    "give the seed_everything and the model.clip of its run, or all of its config.yaml."
                )
            raise InputError(
                f"The checkpoint was trained on CLIP {self.clip}, but {own.clip} with other weights is loaded; set "
                "model.clip to match."
            )
        missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        wrong = sorted(key for key in expected.keys() & found.keys() if expected[key].shape != found[key].shape)
        if missing or unexpected or wrong:
            named = ", ".join((missing + unexpected + wrong)[:3])
            raise InputError(
                f"The checkpoint does not fit this configuration of {ours}: {len(missing)} weights missing, "
                f"{len(unexpected)} unexpected, {len(wrong)} of another shape ({named} ...); use the config.yaml of "
                "the run that wrote it."
            )


class Recorded(Protocol):
    """What a module has to give so that its weights can be saved and loaded."""

    def record(self) -> CheckpointRecord:
        """Say what its weights belong to."""
        ...

    def frozen_names(self) -> Collection[str]:
        """Name the entries of its state that checkpoints leave out."""
        ...

    def take_record(self, record: CheckpointRecord) -> None:
        """Go on from loaded weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give all of its state."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Take state."""
        ...


def saved_state(module: Recorded, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave the frozen CLIP out of a module's state."""
    frozen = module.frozen_names()
    return {name: tensor for name, tensor in state.items() if name not in frozen}


def check_checkpoint(module: Recorded, checkpoint: Mapping[str, Any]) -> CheckpointRecord:
    """Refuse a checkpoint that does not belong to a module; else give its record.

    Raises:
        InputError: See `CheckpointRecord.check`.
    """
    record = CheckpointRecord.of(checkpoint)
    record.check(module.record(), saved_state(module, module.state_dict()), checkpoint["state_dict"])
    return record


def load_weights(module: Recorded, path: Path) -> CheckpointRecord:
    """Load the weights of a checkpoint into a module that is built already.

    Args:
        module: Any method.
        path: What `ovsl fit` or `ovsl convert` wrote.

    Raises:
        InputError: No such file, or a checkpoint that does not fit.
    """
    checkpoint = load_checkpoint_file(path)
    record = check_checkpoint(module, checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    module.take_record(record)
    return record


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers.

    Args:
        state: Tensors by name.

    Raises:
        NotFiniteError: With the first tensor that has a NaN or an infinity.
    """
    tensors = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    if not tensors:
        return
    finite = torch.stack([whole(tensor.isfinite().all()) for tensor in tensors.values()]).tolist()
    broken = next((name for name, good in zip(tensors, finite, strict=True) if not good), None)
    if broken is not None:
        raise NotFiniteError(f"The weights are not finite ({broken}): take an earlier checkpoint, nothing was written.")


def save_checkpoint_file(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all: beside its place, on the disk, then renamed.

    A crash, a kill or a full disk leaves the file that was there before. torch writes a zip archive, whose checksums
    `load_checkpoint_file` compares.

    Args:
        checkpoint: Tensors and plain types.
        path: Where it belongs; its folder is made if needed.

    Raises:
        OSError: It could not be written.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        try:
            torch.save(dict(checkpoint), file)
        except RuntimeError as error:
            # torch answers a write that failed, on a full disk, with an assertion of its archive writer.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint_file(path: Path, mapped: bool = True) -> dict[str, Any]:
    """Open a checkpoint without running anything of it, after its checksums were compared.

    Args:
        path: The file.
        mapped: Whether tensors are mapped from the file and read when they are used, for whoever does not keep them.

    Raises:
        InputError: No such file, or one that is damaged or cannot be loaded safely.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint {str(path)!r}; give a file that `ovsl fit` or `ovsl convert` wrote.")
    stat = path.stat()
    if not _undamaged(path.resolve(), stat.st_size, stat.st_mtime_ns):
        raise InputError(f"{path} is damaged or cut short, by its checksums; take another checkpoint.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:  # zip, pickle and torch raise a dozen unrelated types on a broken or hostile file
        raise InputError(
            f"{path} is not a checkpoint that can be loaded safely ({type(error).__name__}); take one that `ovsl fit` "
            "or `ovsl convert` wrote."
        ) from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint; give a file that `ovsl fit` or `ovsl convert` wrote.")
    return checkpoint


@lru_cache
def _undamaged(path: Path, size: int, modified: int) -> bool:
    """Whether a file is a zip archive whose content has the checksums that it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError):
        return False
