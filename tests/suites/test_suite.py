"""Suites: what is tested of them, what is finished, and that a failure loses nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovsl.__main__ import main
from ovsl.data.catalogue import catalogue
from ovsl.data.evaluation_set import EvaluationSet
from ovsl.data.transforms import EvaluationTransform
from ovsl.suites import Suite, execution

FAKE = """
import json, os, pathlib, signal, sys, time
arguments = sys.argv[1:]
def last(name):
    return arguments[len(arguments) - 1 - arguments[::-1].index(name) + 1]
(name,) = json.loads(last("--data.evaluation"))
here = pathlib.Path(__file__).parent
with (here / "commands").open("a") as file:
    file.write(name + "\\n")
if (here / f"fail-{name}").exists():
    sys.exit(2)
if (here / f"signal-{name}").exists():
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
from ovsl.results import ClassResult, EvaluationResult
one = ClassResult("sky", True, 0.5, 0.5, 4)
metrics = {"mIoU": 0.5, "PQ": 0.25}
intervals = {"mIoU": (0.4, 0.6)}
result = EvaluationResult("mine-toy", "Fake", "test", name, 4, 0, "skip", metrics, (one,), intervals=intervals)
result.write(pathlib.Path(last("--run_dir")) / "results" / f"test-{name}.json")
"""
ALL = ["toy_zero_shot", "toy_zero_shot_words", "toy_zero_shot_few_seen"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `commands` lists the datasets that were tested."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "method.yaml").write_text("model: MaskCLIP\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    monkeypatch.setattr(execution, "OVSL", (sys.executable, str(tmp_path / "fake.py")))
    return tmp_path


def commands_of(folder: Path) -> list[str]:
    names = (folder / "commands").read_text().split() if (folder / "commands").exists() else []
    (folder / "commands").unlink(missing_ok=True)
    return names


COMMAND = ["test", "--suite", "toy", "-c", "method.yaml", "--run_dir", "runs/mine"]


def test_a_failed_dataset_is_named_and_loses_nothing(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (fake / "fail-toy_zero_shot").touch()
    assert main(COMMAND) == 1
    assert commands_of(fake) == ALL
    out, err = capfd.readouterr()
    assert "failed: toy_zero_shot (status 2)" in err
    table = (fake / "runs/mine-toy/table.md").read_text()
    assert [name for name in ALL if f"| {name} " in table] == ALL[1:]
    assert "50.0 [40.0, 60.0]" in table
    assert "PQ" in table
    assert "toy_zero_shot_words" in out
    (fake / "fail-toy_zero_shot").unlink()
    assert main(COMMAND) == 0
    assert commands_of(fake) == ["toy_zero_shot"], "what was finished is not tested again"
    assert main(COMMAND) == 0
    assert commands_of(fake) == []


def test_an_interrupted_suite_goes_on_where_it_stopped(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (fake / f"signal-{ALL[1]}").touch()
    assert main(COMMAND) == 75
    assert commands_of(fake) == ALL[:2]
    assert "the same command goes on" in capfd.readouterr().err
    (fake / f"signal-{ALL[1]}").unlink()
    assert main(COMMAND) == 0
    assert commands_of(fake) == ALL[1:]


def test_other_settings_weights_or_results_are_tested_again(fake: Path) -> None:
    checkpoint = fake / "runs/mine/checkpoints/step-4.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    assert main(COMMAND) == 0
    assert commands_of(fake) == ALL
    checkpoint.write_text("other weights")
    assert main(COMMAND) == 0
    assert commands_of(fake) == ALL
    (fake / "method.yaml").write_text("model: SCLIP\n")
    assert main(COMMAND) == 0
    assert commands_of(fake) == ALL
    assert main([*COMMAND, "--model.templates", "single"]) == 0
    assert commands_of(fake) == ALL
    result = fake / "runs/mine-toy/results/test-toy_zero_shot.json"
    result.write_text(result.read_text().replace("0.5", "0.6"))
    assert main([*COMMAND, "--model.templates", "single"]) == 0
    assert commands_of(fake) == ["toy_zero_shot"]


def test_nothing_that_works_and_no_such_suite_are_one_sentence(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ALL:
        (fake / f"fail-{name}").touch()
    assert main(COMMAND) == 2
    assert "No dataset of the suite 'toy' could be tested" in capfd.readouterr().err
    assert main(["test", "--suite", "mess", "-c", "method.yaml"]) == 2
    assert "There is no suite 'mess': did you mean 'mess_like'?" in capfd.readouterr().err


def settings(name: str, *args: str) -> dict[str, dict[str, Any]]:
    """What each dataset of a suite is tested with."""
    return {
        test.name: json.loads(test.command[test.command.index("--data.evaluation") + 1])[test.name]
        for test in Suite.load(name).tests(args)
    }


def test_what_a_recipe_says_of_a_dataset_or_of_sizes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings("training_free")["cityscapes_19"] == {"transform": {"short_side": 560, "max_size": 2048}}
    recipe = tmp_path / "recipe.yaml"
    published = {"pascal_voc_20": {"published": {"mIoU": 79.7}, "split": None}}
    recipe.write_text(yaml.safe_dump({"data": {"init_args": {"evaluation": published}}}))
    found = settings("training_free", "-c", str(recipe))["pascal_voc_20"]
    assert found == {"published": {"mIoU": 79.7}, "transform": {"short_side": 336, "max_size": 2048}}
    recipe.write_text(yaml.safe_dump({"data": {"evaluation_transform": {"short_side": 640}}}))
    assert settings("training_free", "-c", str(recipe))["pascal_voc_20"] == {}


def test_weights_and_folder_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "runs/mine/checkpoints/step-4.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (first, *_) = Suite.load("panoptic").tests(["--run_dir", "runs/mine"])
    command = " ".join(first.command)
    assert command.endswith(
        "--data.panoptic true --run_dir runs/mine-panoptic --ckpt_path runs/mine/checkpoints/step-4.ckpt "
        '--data.evaluation {"ade20k_150": {"transform": '
        '{"short_side": 800, "max_size": 1333, "interpolation": "antialiased"}}}'
    )
    (first, *_) = Suite.load("toy").tests(["--model", "ovsl.methods.MaskCLIP"])
    assert re.fullmatch("runs/MaskCLIP-[0-9a-f]{6}-toy", str(first.run_dir))


def test_two_methods_of_one_class_do_not_share_a_folder(fake: Path) -> None:
    """What the second command finds, and the report below it, would be of either."""
    command = ["test", "--suite", "toy", "-c", "method.yaml"]
    assert main(command) == main([*command, "--model.templates", "single"]) == 0
    (fake / "method.yaml").write_text("model: {class_path: MaskCLIP, init_args: {synonyms: first}}\n")
    assert main(command) == 0
    folders = list(Path("runs").iterdir())
    assert len(folders) == 3
    assert all(re.fullmatch("MaskCLIP-[0-9a-f]{6}-toy", folder.name) for folder in folders)
    commands_of(fake)
    assert main(command) == 0
    assert commands_of(fake) == [], "the same command goes on"


SUITES = ("toy", "camvid", "open_vocabulary", "zero_shot", "training_free", "tcl", "panoptic", "mess_like")


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_names_datasets_that_there_are(name: str) -> None:
    for dataset, own in Suite.load(name).datasets.items():
        transform = EvaluationTransform(**own["transform"]) if "transform" in own else None
        found = EvaluationSet(**{**own, "transform": transform}).complete(dataset)
        assert found.test is not None
        assert found.load_vocabulary().seen is not None or "split" not in own
        assert dataset in catalogue() or {"vocabulary", "test"} <= own.keys()


def test_a_suite_in_a_file_or_with_another_verb_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("suite: toy\nmodel: MaskCLIP\n")
    assert main(["test", "-c", str(file), "--run_dir", str(tmp_path / "run")]) == 2
    assert "A suite is tested by `ovsl test --suite NAME`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_toy_suite_runs(tmp_path: Path, small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few.yaml"
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "limit_test_batches": 4}
    few.write_text(yaml.safe_dump({"trainer": quiet, "pictures": {"count": 0}, "data": {"num_workers": 0}}))
    command = [
        "test",
        "--suite",
        "toy",
        "-c",
        "ovsl:methods/maskclip",
        "-c",
        str(few),
        "--run_dir",
        str(tmp_path / "run"),
    ]
    assert main(command) == 0
    results = [json.loads((tmp_path / f"run-toy/results/test-{name}.json").read_text()) for name in ALL]
    assert [result["images"] for result in results] == [4, 4, 4]
    assert len({result["metrics"]["mIoU"] for result in results}) == 1
    assert len({result["metrics"]["hIoU"] for result in results}) == 3, "three splits"
