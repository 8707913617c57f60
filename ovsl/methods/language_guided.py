"""What LSeg, DenseCLIP and CLIP-lightweight share in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.inference.multi_scale import label_maps_of_views
from ovsl.methods.base import Batch, SegmentationModule
from ovsl.vocabulary import Vocabulary


class LanguageGuidedModule(SegmentationModule):
    """A method that may end in a classifier of the training classes, and may be evaluated over several views."""

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
            return self._label_maps(batch, vocabulary)
        known = trained.subset(self.seen_classes)
        missing = [name for name in known.classes if name not in vocabulary.classes]
        if missing:
            raise InputError(
                f"{type(self).__name__} was trained on the {len(known)} classes of {trained.name!r} and predicts no "
                f"others, but {vocabulary.name!r} lacks {missing[0]!r}; evaluate on the training vocabulary, or choose "
                "an open-vocabulary configuration (see `ovsl fit --model.help`)."
            )
        positions = torch.tensor([vocabulary.classes.index(name) for name in known.classes], device=self.device)
        return [positions[labels] for labels in self._label_maps(batch, known)]

    def _label_maps(self, batch: Batch, vocabulary: Vocabulary) -> list[Tensor]:
        inference: Any = self.inference
        if not hasattr(inference, "labels"):
            return super().label_maps(batch, vocabulary)
        text = self.text_classifier(vocabulary)
        return label_maps_of_views(lambda images: self(images, text), batch, inference)
