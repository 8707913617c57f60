"""DenseCLIP's texts: class names behind learned contexts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ovsl.clip import FrozenCLIP, TextEmbeddings
from ovsl.errors import InputError
from ovsl.methods.denseclip.network import LearnedContexts
from ovsl.vocabulary import Vocabulary


class ContextTextClassifier:
    """Embeds vocabularies with learned contexts in place of templates; gradients flow to the contexts.

    Without gradients the result is kept until the contexts change.

    Args:
        clip: The model whose text tower is used.
        contexts: The learned contexts.
        name_length: Tokens of a class name, start and end included.
        renamed: Names to show in place of those of the vocabulary.
    """

    def __init__(
        self, clip: FrozenCLIP, contexts: LearnedContexts, name_length: int, renamed: Mapping[str, str] | None = None
    ) -> None:
        self.clip = clip
        self.contexts = contexts
        self.name_length = name_length
        self.renamed = dict(renamed or {})
        self._tokens: dict[tuple[str, ...], Tensor] = {}
        self._cache: dict[tuple[str, ...], tuple[int, TextEmbeddings]] = {}

    def __call__(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Text embeddings `(K, D)` of the principal names, not normalised.

        Raises:
            InputError: A name has more tokens than fit.
        """
        names = tuple(self.renamed.get(name, name) for name in vocabulary.classes)
        tokens = self.tokenize(names)
        # In-place updates raise the version of a parameter, by an optimiser as by a checkpoint.
        version = self.contexts.contexts._version
        if torch.is_grad_enabled():
            return self._embed(tokens)
        kept = self._cache.get(names)
        if kept is None or kept[0] != version or kept[1].vectors.device != tokens.device:
            kept = self._cache[names] = (version, self._embed(tokens))
        return kept[1]

    def tokenize(self, names: tuple[str, ...]) -> Tensor:
        """Token ids `(K, name_length)`."""
        device = self.clip.mean.device
        if names not in self._tokens:
            tokens = self.clip.tokenize(names)
            for name, row in zip(names, tokens, strict=True):
                length = int(row.argmax()) + 1
                if length > self.name_length:
                    raise InputError(
                        f"The class name {name!r} has {length - 2} tokens, but DenseCLIP was set up for at most "
                        f"{self.name_length - 2}; shorten it, or raise model.name_length."
                    )
            self._tokens[names] = tokens[:, : self.name_length]
        return self._tokens[names].to(device)

    def _embed(self, tokens: Tensor) -> TextEmbeddings:
        vectors = self.contexts(self.clip.text, tokens)
        return TextEmbeddings(vectors, torch.arange(len(vectors), device=vectors.device), len(vectors))
