import json
import subprocess
import sys

import pytest

from ovsl.errors import InputError
from ovsl.results import ClassResult, EvaluationResult


def _result():
    return EvaluationResult(
        run="night",
        method="ZegCLIP",
        stage="test",
        dataset="toy",
        images=3,
        step=100,
        absent_classes="skip",
        metrics={"mIoU": 1 / 3, "hIoU": None},
        per_class=(ClassResult("café", True, 1 / 3, None, 10),),
    )


def test_file_holds_every_figure_exactly():
    text = _result().to_json()
    assert json.loads(text)["format"] == 1
    assert json.loads(text)["metrics"]["hIoU"] is None
    assert EvaluationResult.from_json(text) == EvaluationResult.from_json(text.replace("\n", ""))
    assert EvaluationResult.from_json(text).metrics["mIoU"] == 1 / 3


def test_nan_never_reaches_a_file():
    with pytest.raises(ValueError, match="JSON"):
        EvaluationResult(**vars(_result()) | {"metrics": {"mIoU": float("nan")}}).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "format 2, but this ovsl reads format 1"),
        ("{}", "not a result"),
        ("[1]", "not a result"),
        ("{", "not a result"),
        ('{"format": 1, "per_class": [], "colour": "red"}', "colour"),
    ],
)
def test_other_files_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        EvaluationResult.from_json(text)


def test_results_need_no_torch():
    code = "import sys; from ovsl.results import EvaluationResult; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
