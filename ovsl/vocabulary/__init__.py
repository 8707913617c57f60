"""What the classes are called: vocabularies, zero-shot splits and prompt templates. No torch here."""

from ovsl.vocabulary.class_names import ClassNames, available_class_names
from ovsl.vocabulary.files import as_vocabulary, vocabulary_name
from ovsl.vocabulary.palette import generate_palette
from ovsl.vocabulary.templates import available_templates, load_templates
from ovsl.vocabulary.vocabulary import Vocabulary, instance_classes, release_ids

__all__ = [
    "ClassNames",
    "Vocabulary",
    "as_vocabulary",
    "available_class_names",
    "available_templates",
    "generate_palette",
    "instance_classes",
    "load_templates",
    "release_ids",
    "vocabulary_name",
]
