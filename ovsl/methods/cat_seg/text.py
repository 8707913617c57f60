"""Text embeddings from a text tower that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ovsl.clip import FrozenCLIP, SynonymRule, TextClassifier, TextEmbeddings
from ovsl.layers import recompute
from ovsl.vocabulary import ClassNames, Vocabulary


class TrainedTextClassifier(TextClassifier):
    """Embeds vocabularies with a text tower that may train.

    With gradients the tower runs at every call. Without, embeddings are kept until a weight of the tower changes.

    Args:
        clip: The model whose text tower is used.
        templates: Name of a template set.
        synonyms: How the names of a class are merged, see `TextClassifier`.
        class_names: Names to show in place of those of the vocabulary.
        keep_tokens_only: Keep only the tokens of a chunk of prompts for the gradient and run the tower once more.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        templates: str,
        synonyms: SynonymRule = "first",
        class_names: ClassNames | None = None,
        keep_tokens_only: bool = False,
    ) -> None:
        super().__init__(clip, templates, synonyms, class_names)
        self.keep_tokens_only = keep_tokens_only
        self._weights_of_cache: list[Tensor] = []
        self._tokens: dict[tuple[tuple[str, ...], ...], Tensor] = {}

    def __call__(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Embed a vocabulary; see `TextClassifier`.

        Raises:
            InputError: The text tower cannot read some of the words.
        """
        trained = [p for n, p in self.clip.model.named_parameters() if p.requires_grad and not n.startswith("visual.")]
        if trained and torch.is_grad_enabled():
            names = self.names(vocabulary)
            return self._average(self.run_tower(self.tokens(names)), names)
        # Compared by value: fused optimisers write to a tensor without raising its version.
        same = len(trained) == len(self._weights_of_cache) and all(
            own.device == kept.device and torch.equal(own, kept)
            for own, kept in zip(trained, self._weights_of_cache, strict=True)
        )
        if not same:
            self._cache.clear()
            self._weights_of_cache = [parameter.detach().clone() for parameter in trained]
        return super().__call__(vocabulary)

    def names(self, vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
        """Say which names of each class are shown to the text tower; see `class_names`."""
        if self.synonyms != "first":
            return super().names(vocabulary)
        # What stands behind the first comma of a name is left out, as published.
        shown = self.class_names.of(vocabulary)
        return tuple(shown.get(name, (name.split(", ")[0],)) for name in vocabulary.classes)

    def tokens(self, names: tuple[tuple[str, ...], ...]) -> Tensor:
        """Tokens of all prompts of these classes, as long as the longest, int64 `(N, L)`; kept between steps."""
        if names not in self._tokens or self._tokens[names].device != self.clip.mean.device:
            tokens = self.clip.tokenize(self.prompts(names))
            # The tower is causal and read at the end token: nothing behind the longest prompt has an influence.
            self._tokens[names] = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
        return self._tokens[names]

    def run_tower(self, tokens: Tensor, chunk_size: int = 128) -> Tensor:
        """Encode prompts of any length, of which `chunk_size` are recomputed together: int64 `(N, L)` -> `(N, D)`."""
        if not self.keep_tokens_only:
            return encode_tokens(self.clip.text, tokens)
        return torch.cat([recompute(encode_tokens, self.clip.text, chunk) for chunk in tokens.split(chunk_size)])


def encode_tokens(text_tower: Any, tokens: Tensor) -> Tensor:
    """Run open_clip's text tower on prompts of any length: int64 `(N, L)` -> `(N, D)`, not normalised."""
    length = tokens.shape[1]
    sequence = text_tower.token_embedding(tokens) + text_tower.positional_embedding[:length]
    sequence = text_tower.transformer(sequence, attn_mask=text_tower.attn_mask[:length, :length])
    # The end token has the largest id.
    ends = sequence[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
    features, projection = text_tower.ln_final(ends), text_tower.text_projection
    return projection(features) if isinstance(projection, torch.nn.Module) else features @ projection
