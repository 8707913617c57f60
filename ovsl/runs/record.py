"""What a checkpoint is: written, read and checked here and nowhere else.

A checkpoint is Lightning's, with one more entry `ovsl` that says what the weights belong to. Weights of the frozen CLIP
are not in it: their name and hash stand for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary


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
    """

    method: str
    settings: dict[str, Any] | None
    clip: CLIPIdentity
    training_vocabulary: Vocabulary | None = None
    step: int = 0

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> CheckpointRecord:
        """Take the record out of a loaded checkpoint.

        Raises:
            InputError: The checkpoint has none.
        """
        record = checkpoint.get("ovsl")
        if record is None:
            raise InputError("The checkpoint was not written by ovsl; convert official weights with `ovsl convert`.")
        words, settings = record["training_vocabulary"], record["settings"]
        clip = ((settings or {}).get("init_args") or {}).get("clip")
        if clip and clip.get("pretrained") is None and clip.get("config") is None and not record["clip"]["pretrained"]:
            # Random weights did not have to be asked for by name before 0.2.
            settings = {**settings, "init_args": {**settings["init_args"], "clip": {**clip, "pretrained": "random"}}}
        return cls(
            method=record["method"],
            settings=settings,
            clip=CLIPIdentity(**record["clip"]),
            training_vocabulary=None if words is None else Vocabulary.from_dict(words),
            step=int(checkpoint.get("global_step", 0)),
        )

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


def load_checkpoint_file(path: Path) -> dict[str, Any]:
    """Open a checkpoint without running anything of it, its tensors mapped and not read.

    Raises:
        InputError: No such file, or none that can be loaded safely.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint {str(path)!r}; give a file that `ovsl fit` or `ovsl convert` wrote.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # zip, pickle and torch raise a dozen unrelated types on a broken or hostile file
        raise InputError(
            f"{path} is not a checkpoint that can be loaded safely ({type(error).__name__}); it may be cut short."
        ) from error
    return checkpoint
