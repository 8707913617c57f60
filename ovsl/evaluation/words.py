"""What a method is asked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ovsl.clip import TextEmbeddings
from ovsl.vocabulary import Vocabulary


@dataclass(frozen=True)
class Words:
    """A vocabulary as one method takes it.

    Attributes:
        vocabulary: The classes of the answer, with the seen marks that scores are split by.
        text: Embeddings that the network answers for, with the seen marks that the method itself goes by.
        positions: Class of `vocabulary` for each class of `text`, int64 `(K,)`, where a method predicts only some of
            them; None where they are the same.
    """

    vocabulary: Vocabulary
    text: TextEmbeddings
    positions: Tensor | None = None
