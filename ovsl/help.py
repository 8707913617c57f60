"""Help on a verb at once: the options that are used most. The complete list needs the parser, and with it torch."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ovsl.errors import InputError

VERBS = {
    "fit": "train a method; the same command again resumes",
    "validate": "score a method on the validation sets",
    "test": "score a method on the test sets",
    "predict": "label photos with any words",
}
SCORED = "-c METHOD.yaml -c DATA.yaml"
USAGE = {
    "fit": SCORED,
    "validate": SCORED,
    "test": SCORED,
    "predict": "-c METHOD.yaml --data.images DIR --data.vocabulary WORDS",
}
TRAINED = ("validate", "test", "predict")

OPTIONS = (
    (
        "-c, --config FILE",
        "a file, or a shipped one by name (ovsl:methods/zegclip); later ones win",
        VERBS,
    ),
    ("--run_dir DIR", "folder of the run; another start there resumes", ("fit",)),
    ("--run_dir DIR", "folder of the run: its weights and settings, and where results go", TRAINED),
    ("--ckpt_path FILE", "checkpoint whose weights and settings are taken", TRAINED),
    ("--model NAME", "method", VERBS),
    ("--model.clip.model NAME", "CLIP, by its name in open_clip", VERBS),
    ("--model.clip.pretrained TAG", "its weights: a tag, a file, or random", VERBS),
    ("--model.templates NAME", "prompts: single, imagenet_80, ...", VERBS),
    ("--model.optimizer.lr RATE", "learning rate", ("fit",)),
    ("--data.images PATH", "photos: a file, a folder, or a list of both", ("predict",)),
    ("--data.vocabulary WORDS", "a list of words, a vocabulary file, or a shipped name", ("predict",)),
    ("--data.train NAME", "training data, by the name of a dataset", ("fit",)),
    ("--data.evaluation DICT", "datasets to score on, by name: '{ade20k_150: {}}'", ("fit", "validate", "test")),
    ("--data.batch_size N", "images of a step, on each device", ("fit",)),
    ("--trainer.max_steps N", "length of the training", ("fit",)),
    ("--trainer.accelerator KIND", "cpu, gpu, auto", VERBS),
    ("--trainer.devices N", "how many of them", VERBS),
    ("--trainer.precision KIND", "32-true, 16-mixed, bf16-mixed", ("fit",)),
    ("--print_recipe", "say in a dozen lines what would be trained, and stop", ("fit",)),
    ("--print_config", "print all settings as a configuration file, and stop", VERBS),
)
"""Options as they are written, what they do, and the verbs that they are for."""


def verb_help(verb: str) -> str:
    """Say what a verb does and which of its options are used most.

    Args:
        verb: A key of `VERBS`.
    """
    rows = [(option, text) for option, text, verbs in OPTIONS if verb in verbs]
    return "\n".join(
        [
            f"ovsl {verb}: {VERBS[verb]}",
            "",
            f"usage: ovsl {verb} {USAGE[verb]} [--option VALUE ...]",
            "",
            "options used most:",
            *(f"  {option:<28} {text}" for option, text in rows),
            "",
            f"methods: {', '.join(method_names())}",
            "",
            f"`ovsl {verb} --help all` lists every option, `ovsl {verb} --model.help ZegCLIP` those of a method.",
        ]
    )


@lru_cache
def method_names() -> tuple[str, ...]:
    """Names of the methods, read off their package without importing it."""
    tree = ast.parse((Path(__file__).parent / "methods" / "__init__.py").read_text(encoding="utf-8"))
    named = next(
        each.value
        for each in tree.body
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and each.targets[0].id == "__all__"
    )
    return tuple(sorted(set(ast.literal_eval(named)) - {"SegmentationModule"}))


def check_method(given: Sequence[str]) -> None:
    """Refuse a method that does not exist before seconds are spent on imports; classes by a dotted path pass.

    Raises:
        InputError: With the nearest name.
    """
    for position, word in enumerate(given):
        option, _, value = word.partition("=")
        if option == "--model" and (value := value or "".join(given[position + 1 : position + 2])).isidentifier():
            if value in method_names():
                continue
            close = difflib.get_close_matches(value, method_names(), n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(method_names())}."
            raise InputError(f"There is no '{value}' for --model: {hint}")
