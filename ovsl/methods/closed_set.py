"""Closed sets: what DenseCLIP and CLIP-lightweight share in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.base import Batch, SegmentationModule
from ovsl.vocabulary import Vocabulary


class ClosedSetModule(SegmentationModule):
    """A method that may end in a classifier of the training classes."""

    closed_set = False
    """Whether only the classes that were trained on can be predicted."""

    def label_maps(self, batch: Batch, vocabulary: Vocabulary) -> list[Tensor]:
        """See :meth:`SegmentationModule.label_maps`.

        A closed set predicts its own classes, found by name in the vocabulary; all others go unpredicted.

        Raises:
            InputError: The vocabulary lacks a class of a closed set.
        """
        trained = self.training_vocabulary
        if not self.closed_set or trained is None:
            return super().label_maps(batch, vocabulary)
        known = trained.subset(self.seen_classes)
        missing = [name for name in known.classes if name not in vocabulary.classes]
        if missing:
            raise InputError(
                f"{type(self).__name__} was trained on the {len(known)} classes of {trained.name!r} and predicts no "
                f"others, but {vocabulary.name!r} lacks {missing[0]!r}; evaluate on the training vocabulary, or choose "
                "an open-vocabulary configuration (see `ovsl fit --model.help`)."
            )
        positions = torch.tensor([vocabulary.classes.index(name) for name in known.classes], device=self.device)
        return [positions[labels] for labels in super().label_maps(batch, known)]
