"""Closed sets: what DenseCLIP and CLIP-lightweight share in evaluation."""

from __future__ import annotations

import torch

from ovsl.errors import InputError
from ovsl.evaluation import Words
from ovsl.methods.base import SegmentationModule
from ovsl.vocabulary import Vocabulary


class ClosedSetModule(SegmentationModule):
    """A method that may end in a classifier of the training classes."""

    closed_set = False
    """Whether only the classes that were trained on can be predicted."""

    def words(self, vocabulary: Vocabulary) -> Words:
        """See `SegmentationModule.words`.

        A closed set predicts its own classes, found by name in the vocabulary; all others go unpredicted.

        Raises:
            InputError: The vocabulary lacks a class of a closed set.
        """
        if not self.closed_set or self.training_vocabulary is None:
            return super().words(vocabulary)
        trained, known = self.training_vocabulary, self.training_classes.seen
        missing = [name for name in known.classes if name not in vocabulary.classes]
        if missing:
            raise InputError(
                f"{type(self).__name__} was trained on the {len(known)} classes of {trained.name!r} and predicts no "
                f"others, but {vocabulary.name!r} lacks {missing[0]!r}; evaluate on the training vocabulary, or choose "
                "an open-vocabulary configuration (see `ovsl fit --model.help`)."
            )
        positions = torch.tensor([vocabulary.classes.index(name) for name in known.classes], device=self.device)
        return Words(self.with_seen(vocabulary), self.text_classifier(known), positions)
