"""Text classifier: vocabulary x prompt templates -> unit text embeddings, computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ovsl.clip.towers import FrozenCLIP
from ovsl.vocabulary import ClassNames, Vocabulary, load_templates

SynonymRule = Literal["first", "mean", "max"]


@dataclass(frozen=True)
class TextEmbeddings:
    """Text embeddings of a vocabulary.

    Attributes:
        vectors: Unit vectors, one per class, or one per synonym when synonyms compete: `(N, D)`.
        class_index: Class of each row, int64 `(N,)`, ascending.
        num_classes: C.
        seen: bool `(C,)`, which classes count as seen in training; None when nothing is known.
    """

    vectors: Tensor
    class_index: Tensor
    num_classes: int
    seen: Tensor | None = None

    def to(self, device: torch.device | str) -> TextEmbeddings:
        """Copy to a device."""
        seen = None if self.seen is None else self.seen.to(device)
        return TextEmbeddings(self.vectors.to(device), self.class_index.to(device), self.num_classes, seen)

    def per_class(self, scores: Tensor, dim: int = 1) -> Tensor:
        """Reduce scores of synonym rows to classes by their maximum.

        Args:
            scores: Scores with N entries along `dim`.
            dim: The dimension of the rows.

        Returns:
            The same with C entries along `dim`; untouched when every class has one row.
        """
        if self.vectors.shape[0] == self.num_classes:
            return scores
        shape = list(scores.shape)
        shape[dim] = self.num_classes
        view = [1] * scores.ndim
        view[dim] = -1
        index = self.class_index.view(view).expand_as(scores)
        return scores.new_full(shape, float("-inf")).scatter_reduce(dim, index, scores, "amax")


class TextEncoder(Protocol):
    """Anything that turns the classes of a vocabulary into text embeddings."""

    def __call__(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Embed a vocabulary."""


class TextClassifier:
    """Embeds vocabularies with a frozen CLIP and remembers the result of each.

    Prompts are laid out class, synonym, template. Each prompt is encoded and normalised, the templates of a name are
    averaged and normalised again (CLIP's ImageNet recipe).

    Args:
        clip: The model whose text tower is used.
        templates: Name of a template set, see `ovsl.vocabulary.load_templates`.
        synonyms: `first` uses the principal name alone, `mean` averages the names of a class into one vector,
            `max` keeps one vector per name and lets the best one speak for the class (FC-CLIP).
        class_names: Names to show in place of those of a vocabulary. If a class has several and the rule is `first`,
            the best one speaks for it.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        templates: str = "imagenet_80",
        synonyms: SynonymRule = "first",
        class_names: ClassNames | None = None,
    ) -> None:
        self.clip = clip
        self.templates = load_templates(templates)
        self.synonyms: SynonymRule = synonyms
        self.class_names = class_names or ClassNames()
        self._cache: dict[tuple[tuple[str, ...], ...], TextEmbeddings] = {}
        self._seen: dict[tuple[bool, ...], Tensor] = {}

    def __call__(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Embed a vocabulary, or return what was embedded before.

        Raises:
            InputError: The text tower cannot read some of the words.
        """
        names = self.names(vocabulary)
        if names not in self._cache:
            self._cache[names] = self.embed(names)
        device = self.clip.mean.device
        if self._cache[names].vectors.device != device:
            self._cache[names] = self._cache[names].to(device)
        if vocabulary.seen is None:
            return self._cache[names]
        if vocabulary.seen not in self._seen or self._seen[vocabulary.seen].device != device:
            self._seen[vocabulary.seen] = torch.tensor(vocabulary.seen, device=device)
        return replace(self._cache[names], seen=self._seen[vocabulary.seen])

    def names(self, vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
        """Say which names of each class are shown to the text tower."""
        shown = self.class_names.of(vocabulary)
        own = vocabulary.synonyms if self.synonyms != "first" else tuple((name,) for name in vocabulary.classes)
        return tuple(shown.get(name, names) for name, names in zip(vocabulary.classes, own, strict=True))

    def prompts(self, names: Sequence[Sequence[str]]) -> list[str]:
        """Return all prompts, order class, synonym, template."""
        return [template.format(name) for group in names for name in group for template in self.templates]

    def remember(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """Take embeddings that were made elsewhere for those of a vocabulary, as long as nothing trains."""
        self._cache[self.names(vocabulary)] = embeddings

    def embed(self, names: tuple[tuple[str, ...], ...]) -> TextEmbeddings:
        """Embed the names of each class, whatever was embedded before."""
        # Embeddings outlive the evaluation that first asks for them; an inference tensor could not enter training.
        # In float32 whoever asks: an evaluation shares what training embedded in mixed precision.
        full = torch.autocast(self.clip.mean.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), full:
            return self._average(self.clip.encode_text(self.clip.tokenize(self.prompts(names))), names)

    def _average(self, features: Tensor, names: tuple[tuple[str, ...], ...]) -> TextEmbeddings:
        """Text features of all prompts, `(classes * synonyms * templates, D)` -> unit embeddings."""
        vectors = functional.normalize(features, dim=-1).unflatten(0, (-1, len(self.templates)))
        vectors = functional.normalize(vectors.mean(1), dim=-1)
        class_index = torch.arange(len(names), device=vectors.device)
        if len(vectors) == len(names):
            return TextEmbeddings(vectors, class_index, len(names))
        counts = torch.tensor([len(group) for group in names], device=vectors.device)
        class_index = torch.repeat_interleave(class_index, counts)
        if self.synonyms == "mean":
            sums = vectors.new_zeros(len(names), vectors.shape[1]).index_add(0, class_index, vectors)
            vectors = functional.normalize(sums / counts[:, None], dim=-1)
            class_index = torch.arange(len(names), device=vectors.device)
        return TextEmbeddings(vectors, class_index, len(names))
