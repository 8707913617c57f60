"""Studies: their cells, what is finished, and going on after an interruption."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from ovsl.__main__ import main
from ovsl.errors import InputError, StoppedError
from ovsl.results import ClassResult, EvaluationResult
from ovsl.suites import Study, execution, run_cells
from tests.conftest import ROOT

FAKE = """
import json, os, pathlib, signal, sys, time
arguments = sys.argv[1:]
run = pathlib.Path(arguments[arguments.index("--run_dir") + 1])
with (pathlib.Path(__file__).parent / "commands").open("a") as file:
    file.write(" ".join(arguments[:1]) + " " + run.name + "\\n")
if (pathlib.Path(__file__).parent / f"signal-{run.name}").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
fail = pathlib.Path(__file__).parent / f"fail-{run.name}"
if fail.exists():
    sys.exit(int(fail.read_text()))
(run / "results").mkdir(parents=True, exist_ok=True)
if arguments[0] == "test":
    template = pathlib.Path(__file__).parent / "result.json"
    seed = int(run.name[-1]) if "seed" in run.name else 0
    (run / "results/test-toy.json").write_text(template.read_text().replace("0.25", str(0.25 + seed / 100)))
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "one", "two", "free"):
        Path(f"{name}.yaml").write_text("{}")
    content = {
        "runs": "runs/study",
        "configs": ["data.yaml"],
        "options": {"trainer.max_steps": 5, "data.train_transform.crop_size": 96},
        "axes": {
            "rows": {
                "free": {"configs": ["free.yaml"], "train": False},
                "one": {"configs": ["one.yaml"]},
                "two": {"configs": ["two.yaml"], "options": {"trainer.max_steps": 9, "data.split": None}},
            }
        },
        "seeds": [0, 1],
    }
    Path("study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    Path("fake.py").write_text(FAKE)
    classes = (ClassResult("cat", seen=True, iou=0.5, accuracy=0.5, pixels=1),)
    result = EvaluationResult("", "Method", "test", "toy", 1, 0, "skip", metrics={"mIoU": 0.25}, per_class=classes)
    Path("result.json").write_text(result.to_json())
    monkeypatch.setattr(execution, "OVSL", (sys.executable, str(tmp_path / "fake.py")))
    return Study.read(Path("study.yaml"))


def test_cells_are_rows_by_seeds_and_one_where_nothing_trains(study: Study) -> None:
    assert [cell.name for cell in study.cells()] == ["free", "one-seed0", "two-seed0", "one-seed1", "two-seed1"]
    free, _, two = study.cells()[:3]
    assert free.commands()[0][:5] == ["test", "-c", "data.yaml", "-c", "free.yaml"]
    train, test = two.commands()
    assert " ".join(train).startswith("fit -c data.yaml -c two.yaml --trainer.max_steps 9 ")
    assert "--data.split null --seed_everything 0 --data.seed 0 --run_dir runs/study/two-seed0" in " ".join(train)
    assert test == ["test", "-c", "runs/study/two-seed0/config.yaml", "--run_dir", "runs/study/two-seed0"]


def test_a_failure_loses_nothing_and_is_run_again(study: Study, tmp_path: Path) -> None:
    (tmp_path / "fail-one-seed0").write_text("1")
    outcomes = run_cells(study.cells(), say=lambda line: None)
    assert [(outcome.cell.name, outcome.status) for outcome in outcomes if outcome.status] == [("one-seed0", 1)]
    assert sum(cell.finished for cell in study.cells()) == 4
    (tmp_path / "fail-one-seed0").unlink()
    (tmp_path / "commands").unlink()
    run_cells(study.cells(), jobs=2, logs=tmp_path / "logs", say=lambda line: None)
    assert (tmp_path / "commands").read_text() == "fit one-seed0\ntest one-seed0\n"
    assert (tmp_path / "logs/one-seed0.log").is_file()


def test_a_signal_stops_the_study_too(study: Study, tmp_path: Path) -> None:
    (tmp_path / "fail-one-seed0").write_text("75")
    with pytest.raises(StoppedError):
        run_cells(study.cells(), say=lambda line: None)
    assert (tmp_path / "commands").read_text() == "test free\nfit one-seed0\n"


def test_a_signal_to_the_study_is_handed_on(study: Study, tmp_path: Path) -> None:
    (tmp_path / "signal-one-seed0").write_text("")
    with pytest.raises(StoppedError):
        run_cells(study.cells(), say=lambda line: None)
    assert (tmp_path / "commands").read_text() == "test free\nfit one-seed0\n"


def test_a_dry_run_prints_every_command_and_runs_none(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "study.yaml", "--dry_run", "--seeds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 2 + 1
    assert lines[-1].startswith("ovsl report runs/study --stage test --average_seeds true")
    assert not Path("runs").exists()


def test_an_array_has_the_cells_that_are_not_finished(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    run_cells(study.cells()[:2], say=lambda line: None)
    capsys.readouterr()
    assert main(["study", "study.yaml", "--slurm", "--dry_run", "--job.time", "1:00:00"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=2,3,4" in script
    assert "ovsl study study.yaml --runs runs/study --seeds 0 1 --array_task" in script


def test_a_task_of_an_array_runs_its_cell(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert main(["study", "study.yaml", "--array_task"]) == 0
    assert (tmp_path / "commands").read_text() == "fit one-seed1\ntest one-seed1\n"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "30")
    assert main(["study", "study.yaml", "--array_task"]) == 2


def test_a_study_ends_in_a_table_and_a_page_with_mean_and_spread(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ovsl.tools.study.OVSL", (sys.executable, "-m", "ovsl"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["study", "study.yaml"]) == 0
    table, page = study.table.read_text(), (study.page / "index.html").read_text()
    assert "25.5 ± 0.7" in table
    assert page.count("25.5 ± 0.7") == 2, "two methods with two seeds each"
    assert "<td>free</td>" in page
    assert "cat" in page
    assert "runs/study/page/index.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    ["[]", "axes: {}", "axes: {rows: {a: {config: x}}}", "axes: {rows: {a: {configs: [missing.yaml]}}}", "axes: {"],
)
def test_what_is_no_study_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(InputError):
        Study.read(tmp_path / "study.yaml")


def test_results_of_other_stages_do_not_finish_a_cell(study: Study) -> None:
    cell = study.cells()[0]
    (cell.run_dir / "results").mkdir(parents=True)
    (cell.run_dir / "results/validate-toy.json").write_text(json.dumps({}))
    assert not cell.finished
