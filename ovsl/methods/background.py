"""Methods that treat the background apart."""

from __future__ import annotations

from ovsl.errors import InputError
from ovsl.vocabulary import Vocabulary

BACKGROUND = "background"


def check_background_first(vocabulary: Vocabulary, otherwise: str) -> None:
    """Refuse a vocabulary whose first class is not the background.

    Args:
        vocabulary: The classes to choose from.
        otherwise: Setting that does without, for the message.

    Raises:
        InputError: Class 0 has another name, and `background` is none of its synonyms.
    """
    if BACKGROUND not in (vocabulary.classes[0], *vocabulary.synonyms[0]):
        raise InputError(
            f"The method tells foreground from background, but class 0 of {vocabulary.name!r} is "
            f"{vocabulary.classes[0]!r}; put {BACKGROUND!r} first, or set {otherwise}."
        )
