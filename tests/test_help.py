"""Help on a verb, and unknown methods, without torch; what help says is true."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import ovsl.methods
from ovsl.__main__ import main
from ovsl.help import OPTIONS, VERBS, check_method, method_names, verb_help
from ovsl.tools.completion import command_options
from tests.conftest import ROOT


def test_methods_are_read_off_their_package() -> None:
    assert set(method_names()) == set(ovsl.methods.__all__) - {"SegmentationModule"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_help_exists(verb: str) -> None:
    named = {option.split(", ")[-1].split()[0] for option, _, verbs in OPTIONS if verb in verbs}
    assert named - {"--model.optimizer.lr"} <= set(command_options(verb))
    assert verb_help(verb).count("\n  -") == len(named)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["fit", "--model", "PatchTxt"], "did you mean 'PatchText'?"),
        (["test", "--model=Zebra"], "there are CATSeg, "),
        (["fit", "--model", "SegmentationModule"], "no 'SegmentationModule'"),
    ],
)
def test_an_unknown_method_is_one_sentence(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", [["--model", "SAN"], ["--model", "my.package.Mine"], ["--model"], ["--model", "{}"]])
def test_what_may_be_a_method_passes(given: list[str]) -> None:
    check_method(["fit", *given])


def test_neither_imports_torch() -> None:
    program = """
import json, sys
from ovsl.__main__ import main
statuses = [main(args) for args in json.loads(sys.argv[1])]
print(json.dumps([statuses, sorted({"torch", "lightning", "numpy", "jsonargparse"} & set(sys.modules))]))
"""
    calls = [*([verb, "--help"] for verb in VERBS), ["fit", "-h"], ["fit", "--model", "ZegCLP"]]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(calls)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0, 0, 0, 0, 2], []]
    assert "ovsl predict: label photos with any words" in done.stdout
