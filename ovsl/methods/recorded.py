"""What the weights of a method belong to: written into its checkpoints, and compared when they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningModule

from ovsl.clip import FrozenCLIP
from ovsl.errors import InputError
from ovsl.runs.record import CheckpointRecord, CLIPIdentity, check_checkpoint, check_finite, saved_state
from ovsl.vocabulary import Vocabulary


class RecordedModule(LightningModule):
    """A module whose checkpoints leave its frozen CLIP out and say what they are.

    Args:
        clip: The CLIP of the method.

    Attributes:
        training_vocabulary: What it trains or was trained on; None where nothing was.
        settings: `class_path` and `init_args` that it was built with; None where no command built it.
    """

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        self.clip = clip
        # Checkpoints leave the frozen CLIP out; `on_load_checkpoint` is stricter than Lightning's own check.
        self.strict_loading = False
        self.training_vocabulary: Vocabulary | None = None
        self.settings: dict[str, Any] | None = None
        self._loaded_step = 0

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        """Refuse Lightning's way to load: it would take this class's defaults for all that the run had set.

        Raises:
            InputError: Always, with the way to go.
        """
        raise InputError(
            f"A method is loaded with its own settings: write ovsl.load({str(checkpoint_path)!r}) instead of "
            "load_from_checkpoint."
        )

    @property
    def trained_steps(self) -> int:
        """Optimiser steps behind the current weights, also when they come from a checkpoint."""
        return max(self.global_step, self._loaded_step)

    def frozen_names(self) -> set[str]:
        """Name the weights of the frozen CLIP, which checkpoints leave out: its name and hash stand for them."""
        return {f"clip.model.{name}" for name in self.clip.frozen_names()}

    def check_weights(self) -> None:
        """Refuse weights that are not finite.

        Raises:
            NotFiniteError: Some of what trains is NaN or infinite.
        """
        check_finite(saved_state(self, self.state_dict()))

    def record(self) -> CheckpointRecord:
        """Say what the weights belong to."""
        clip = CLIPIdentity(self.clip.name, self.clip.pretrained, self.clip.sha256)
        method = f"{type(self).__module__}.{type(self).__qualname__}"
        return CheckpointRecord(method, self.settings, clip, self.training_vocabulary, self.trained_steps)

    def take_record(self, record: CheckpointRecord) -> None:
        """Go on from loaded weights: what they trained on, and for how long."""
        self._loaded_step = record.step
        if record.training_vocabulary is not None:
            self.training_vocabulary = record.training_vocabulary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out, and record what the weights belong to."""
        checkpoint["state_dict"] = saved_state(self, checkpoint["state_dict"])
        checkpoint["ovsl"] = self.record().to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong to this module (see `CheckpointRecord.check`) or to its data."""
        record = check_checkpoint(self, checkpoint)
        ours, theirs = self.training_vocabulary, record.training_vocabulary
        if ours is not None and theirs is not None and (ours.classes, ours.seen) != (theirs.classes, theirs.seen):
            raise InputError(
                f"The checkpoint was trained on {len(theirs)} classes of {theirs.name!r}, but the data has other ones, "
                f"or another split ({len(ours)} classes of {ours.name!r}); give back the vocabulary of the run, or "
                "start a new one from these weights (--model.initial_checkpoint)."
            )
        self.take_record(record)
