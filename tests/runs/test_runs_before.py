"""Run directories that were written under older names of options: read, resumed, and their figures found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovsl.__main__ import main
from ovsl.errors import InputError
from ovsl.renamed import RENAMED, check_command, current_content, migrate, migrate_identity
from ovsl.runs.directory import identity
from ovsl.runs.record import CheckpointRecord
from tests.conftest import ROOT

RUNS = sorted((ROOT / "tests/fixtures/runs_before").iterdir())
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(request.param, tmp_path / request.param.name)


def figures(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "results/validate-toy.json").read_text())
    return {name: result[name] for name in ("step", "images", "metrics", "per_class")}


def test_its_checkpoint_makes_the_model_and_gives_the_same_figures(run: Path) -> None:
    expected = figures(run)
    (run / "results/validate-toy.json").unlink()
    data = ["-c", str(ROOT / "configs/data/toy.yaml"), "-c", str(ROOT / "configs/trainer/cpu.yaml")]
    few = ["--trainer.limit_val_batches", "2", "--data.evaluation_batch_size", "1", "--data.num_workers", "0"]
    assert main(["validate", "--run_dir", str(run), *data, *few, *QUICK]) == 0
    assert figures(run) == expected


def test_its_own_configuration_works_as_it_is(run: Path) -> None:
    expected = figures(run)
    (run / "results/validate-toy.json").unlink()
    assert main(["validate", "-c", str(run / "config.yaml"), "--run_dir", str(run)]) == 0
    assert figures(run) == expected


def test_it_is_complete_and_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", "-c", str(run / "config.yaml"), "--run_dir", str(run)]
    assert main(command) == 0
    assert "is complete: 2 of 2 steps" in capsys.readouterr().out
    assert main([*command, "--trainer.max_steps", "3", "--trainer.limit_val_batches", "0"]) == 0
    assert "from step 2" in capsys.readouterr().out
    assert CheckpointRecord.read(run / "checkpoints/last.ckpt").step == 3


def test_another_run_is_still_refused_in_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"zegclip": "--model.sizes.num_heads=1", "fc_clip": "--model.sizes.mask_decoder.num_layers=3"}[run.name]
    assert main(["fit", "-c", str(run / "config.yaml"), "--run_dir", str(run), other]) == 2
    option = other.removeprefix("--").partition("=")[0]
    assert f"holds another run: {option} was" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["validate", "profile"])
def test_an_old_name_elsewhere_is_told_the_new_one(run: Path, tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.parent / "mine.yaml"
    shutil.copy(run / "config.yaml", file)
    assert main([tool, "-c", str(file)]) == 2
    old = {"zegclip": ("decoder_heads", "num_heads"), "fc_clip": ("mask_decoder.width", "mask_decoder.width")}[run.name]
    error = capsys.readouterr().err
    assert f"model.{old[0]} is called model.sizes.{old[1]} now" in error
    assert f"rename them in {file}." in error
    assert len(error.splitlines()) == 1


def test_an_old_name_on_the_command_line_is_told_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--model", "ZegCLIP", "--model.decoder_heads", "3"]) == 2
    told = "model.decoder_heads is called model.sizes.num_heads now; rename it in the command."
    assert capsys.readouterr().err == f"ovsl: {told}\n"
    with pytest.raises(InputError, match=r"model\.heads is called model\.sizes\.num_heads"):
        check_command(["test", "--ckpt_path", "some.ckpt", "--model.heads=2"])
    check_command(["fit", "--model", "PatchText", "--model.width", "2"])  # PatchText never had it: the parser's to say


def test_every_old_option_moves_with_its_value() -> None:
    for method, renames in RENAMED.items():
        old: dict[str, Any] = {"templates": "single"}
        for number, name in enumerate(renames):
            group, _, option = name.rpartition(".")
            (old.setdefault(group, {}) if group else old)[option] = number
        new = migrate({"class_path": f"ovsl.methods.{method}", "init_args": old})
        flat = identity({"model": new})
        assert {name: flat[f"model.{name}"] for name in renames.values()} == dict(
            zip(renames.values(), range(len(renames)), strict=True)
        )
        assert migrate_identity(identity({"model": {"class_path": method, "init_args": old}})) == {
            **flat, "model.class_path": method,
        }  # fmt: skip
        assert migrate(new) == new, "what has today's names stays"


def test_what_was_left_out_stays_out() -> None:
    old = {"class_path": "DenseCLIP", "init_args": {"num_classes": 3, "context_decoder": None}}
    assert migrate(old) == {"class_path": "DenseCLIP", "init_args": {"num_classes": 3}}
    assert migrate({"class_path": "MaskCLIP"}) == {"class_path": "MaskCLIP", "init_args": {}}
    san = {"model.class_path": "ovsl.methods.SAN", "model.network.fusion.1": 3, "model.templates": "single"}
    assert migrate_identity(san)["model.sizes.fusion.1"] == 3


def test_files_of_today_and_of_other_things_pass() -> None:
    for content in (
        None,
        "a word",
        {"data": {}},
        {"model": {"class_path": "SAN", "init_args": {"sizes": {"width": 9}}}},
    ):
        assert current_content(content, Path("some.yaml")) == content
    for run in RUNS:
        content = yaml.safe_load((run / "config.yaml").read_text())
        assert set(current_content(content, run / "config.yaml")) == set(content)
