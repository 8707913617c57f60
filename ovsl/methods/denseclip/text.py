"""DenseCLIP's texts: class names behind learned contexts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ovsl.clip import FrozenCLIP, TextEmbeddings
from ovsl.errors import InputError
from ovsl.vocabulary import ClassNames, Vocabulary


class LearnedContexts(nn.Module):
    """Context tokens that all classes share, put between the start token and the name (CoOp's form).

    Args:
        num_contexts: Number of tokens.
        width: Width of the text tower.
    """

    def __init__(self, num_contexts: int, width: int) -> None:
        super().__init__()
        self.contexts = nn.Parameter(torch.empty(1, num_contexts, width))
        nn.init.trunc_normal_(self.contexts)

    def forward(self, text_tower: Any, tokens: Tensor) -> Tensor:
        """Encode class names behind the contexts.

        Args:
            text_tower: open_clip text tower (the model itself, or its `text`).
            tokens: Start, name, end and padding, int64 `(K, L)`.

        Returns:
            `(K, D)`, not normalised.
        """
        words = text_tower.token_embedding(tokens)
        contexts = self.contexts.expand(len(words), -1, -1)
        sequence = torch.cat([words[:, :1], contexts, words[:, 1:]], dim=1)
        length = sequence.shape[1]
        sequence = sequence + text_tower.positional_embedding[:length]
        sequence = text_tower.transformer(sequence, attn_mask=text_tower.attn_mask[:length, :length])
        # The end token has the largest id.
        ends = tokens.argmax(dim=1) + contexts.shape[1]
        features = text_tower.ln_final(sequence[torch.arange(len(sequence), device=tokens.device), ends])
        projection = text_tower.text_projection
        return projection(features) if isinstance(projection, nn.Module) else features @ projection


class ContextTextClassifier:
    """Embeds vocabularies with learned contexts in place of templates; gradients flow to the contexts.

    Without gradients the result is kept until the contexts change.

    Args:
        clip: The model whose text tower is used.
        contexts: The learned contexts.
        name_length: Tokens of a class name, start and end included.
        class_names: Names to show in place of those of the vocabulary, one for each class.
    """

    def __init__(
        self, clip: FrozenCLIP, contexts: LearnedContexts, name_length: int, class_names: ClassNames | None = None
    ) -> None:
        self.clip = clip
        self.contexts = contexts
        self.name_length = name_length
        self.class_names = class_names or ClassNames()
        self._tokens: dict[tuple[str, ...], Tensor] = {}
        self._cache: dict[tuple[str, ...], tuple[Tensor, TextEmbeddings]] = {}

    def __call__(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Text embeddings `(K, D)` of the principal names, not normalised.

        Raises:
            InputError: A name has more tokens than fit.
        """
        names = self.class_names.principal(vocabulary)
        tokens = self.tokenize(names)
        if torch.is_grad_enabled():
            return self._embed(tokens)
        contexts, kept = self.contexts.contexts, self._cache.get(names)
        # Compared by value: fused optimisers write to a parameter without raising its version.
        if kept is None or kept[0].device != contexts.device or not torch.equal(kept[0], contexts):
            kept = self._cache[names] = (contexts.detach().clone(), self._embed(tokens))
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
        if self._tokens[names].device != device:
            self._tokens[names] = self._tokens[names].to(device)
        return self._tokens[names]

    def _embed(self, tokens: Tensor) -> TextEmbeddings:
        vectors = self.contexts(self.clip.text, tokens)
        return TextEmbeddings(vectors, torch.arange(len(vectors), device=vectors.device), len(vectors))
