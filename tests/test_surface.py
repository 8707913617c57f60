"""What users' scripts, YAMLs and result files lean on, beside a list of it in `surface.txt`.

A change of the list is a change that users notice: renew it with `python -m tests.test_surface`, and say so in the
commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import jsonargparse

import ovsl.methods
from ovsl.__main__ import TOOLS
from ovsl.cli import Command
from ovsl.metrics import MaskAveragePrecision, OpenVocabularyIoU, PanopticQuality
from ovsl.results import ClassResult, EvaluationResult

SNAPSHOT = Path(__file__).with_name("surface.txt")


def options(method: type) -> list[str]:
    """Names of a method's options on the command line, `--model.NAME`; those of a chosen class are its own."""
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(method, "model", fail_untyped=False)
    names = (name.removeprefix("model.") for name, _ in parser.get_defaults().items())
    return sorted({re.sub(r"\.(class_path|init_args\..*)$", "", name) for name in names})


def surface() -> Iterator[tuple[str, list[str]]]:
    """Headings and the words below them."""
    yield "verbs", [*Command.subcommands(), *TOOLS]
    for name in sorted(ovsl.methods.__all__):
        if name != "SegmentationModule":
            yield f"options of {name}", options(getattr(ovsl.methods, name))
    for metric in (OpenVocabularyIoU, PanopticQuality, MaskAveragePrecision):
        yield f"figures of {metric.__name__}", list(metric.scalars)
    one = ClassResult("cat", seen=True, iou=0.5, accuracy=0.5, pixels=1)
    result = EvaluationResult("run", "method", "test", "toy", 1, 0, "skip", metrics={}, per_class=(one,))
    written = json.loads(result.to_json())
    yield f"keys of a result file of format {written['format']}", list(written)
    yield "keys of a class in a result file", list(written["per_class"][0])


def text() -> str:
    """The list as `surface.txt` holds it."""
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    sections = [[heading, *wrap(" ".join(words), 100, **indent)] for heading, words in surface()]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def test_the_surface_is_the_one_that_was_promised() -> None:
    assert text() == SNAPSHOT.read_text(), "renew with `python -m tests.test_surface` if the change is meant"


if __name__ == "__main__":
    SNAPSHOT.write_text(text())
