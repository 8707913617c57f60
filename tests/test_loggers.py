"""Loggers other than TensorBoard, by their name alone."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from ovsl.__main__ import main
from tests.conftest import ROOT


@pytest.fixture
def fit(small: Path, tmp_path: Path) -> list[str]:
    files = (ROOT / "configs/methods/patch_text.yaml", ROOT / "configs/data/toy.yaml", small)
    return ["fit", *(word for file in files for word in ("-c", str(file))), "--run_dir", str(tmp_path / "run")]


@pytest.mark.parametrize("given", ["option", "file"])
def test_csv_goes_to_the_run_directory(given: str, fit: list[str], tmp_path: Path) -> None:
    (tmp_path / "logger.yaml").write_text("trainer: {logger: CSVLogger}")
    logger = {"option": ["--trainer.logger", "CSVLogger"], "file": ["-c", str(tmp_path / "logger.yaml")]}[given]
    assert main([*fit, *logger, "--trainer.max_steps", "2"]) == 0
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1"]
    assert not list((tmp_path / "run").glob("events.*"))
    assert main([*fit, *logger, "--trainer.max_steps", "3"]) == 0, "a run with another logger resumes"


@pytest.mark.parametrize("given", ["list", "added", "file"])
def test_several_loggers_go_to_the_run_directory(given: str, fit: list[str], tmp_path: Path) -> None:
    several = "[CSVLogger, {class_path: TensorBoardLogger, init_args: {name: board}}]"
    (tmp_path / "logger.yaml").write_text(f"trainer: {{logger: {several}}}")
    logger = {
        "list": ["--trainer.logger", several],
        "added": ["--trainer.logger+=CSVLogger"],
        "file": ["-c", str(tmp_path / "logger.yaml")],
    }[given]
    assert main([*fit, *logger, "--trainer.max_steps", "1"]) == 0
    run = tmp_path / "run"
    assert (run / "metrics.csv").is_file()
    assert list((run if given == "added" else run / "board").glob("events.*"))


def test_a_place_of_the_users_own_stays(fit: list[str], tmp_path: Path) -> None:
    place = ["--trainer.logger.save_dir", str(tmp_path / "own"), "--trainer.logger.name", "mine"]
    assert main([*fit, "--trainer.logger", "CSVLogger", *place, "--trainer.max_steps", "1"]) == 0
    assert list((tmp_path / "own/mine").rglob("metrics.csv"))


def test_weights_and_biases_that_is_not_installed_is_one_sentence(
    fit: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*fit, "--trainer.logger", "WandbLogger"]) == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("ovsl: "))
    assert "pip install 'ovsl[wandb]'" in said


def test_weights_and_biases_goes_to_the_run_directory(fit: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    offline = ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    assert main([*fit, *offline, "--trainer.max_steps", "2"]) == 0
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
