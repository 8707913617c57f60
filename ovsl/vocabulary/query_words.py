"""Words that publications of the training-free line prompt with in place of a vocabulary's names."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from ovsl.vocabulary.vocabulary import Vocabulary

QueryWords = Literal["sclip", "clearclip", "proxyclip", "corrclip"]
"""Whose lists: SCLIP's (NACLIP uses the same), ClearCLIP's, ProxyCLIP's, or those of CorrCLIP's first version."""


def with_query_words(vocabulary: Vocabulary, source: QueryWords) -> Vocabulary:
    """Give the classes of a shipped vocabulary the words of a published list as synonyms.

    The background is often a list of things that may be there (`sky`, `wall` ...), and names are written as the list
    has them, also where that changes the tokens (`trafficlight`). The classes themselves keep their names.

    Args:
        vocabulary: The vocabulary, or a subset of it.
        source: Whose list.

    Returns:
        The same vocabulary where no list is known for it.
    """
    words = _query_words(vocabulary.name).get(source, {})
    if not all(name in words for name in vocabulary.classes):
        return vocabulary
    return replace(vocabulary, synonyms=tuple(words[name] for name in vocabulary.classes))


@lru_cache
def _query_words(vocabulary: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Source -> class -> words; nothing for a vocabulary without a list."""
    file = resources.files("ovsl.vocabulary").joinpath("data", "query_words", f"{vocabulary}.json")
    if not file.is_file():
        return {}
    classes: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["classes"]
    sources = [key for key in classes[0] if key != "name"]
    return {source: {entry["name"].strip(): tuple(entry[source]) for entry in classes} for source in sources}
