"""What the classes are called: vocabularies, zero-shot splits and prompt templates. No torch here."""

from ovsl.vocabulary.palette import generate_palette
from ovsl.vocabulary.templates import available_templates, load_templates
from ovsl.vocabulary.vocabulary import Vocabulary

__all__ = ["Vocabulary", "available_templates", "generate_palette", "load_templates"]
