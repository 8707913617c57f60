"""How far long work is: lines in a log, a bar on a terminal, nothing for what is done at once."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest

from ovsl import progress as module
from ovsl.__main__ import main
from ovsl.progress import busy, counting, progress, watched
from tests.conftest import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    for item in progress(range(40), "Embedding words"):
        done.append(item)
        clock[0] += 1
    error = capsys.readouterr().err
    assert done == list(range(40))
    assert error.splitlines() == [
        "Embedding words: 2 of 40, 2 s",
        "Embedding words: 17 of 40, 17 s",
        "Embedding words: 32 of 40, 32 s",
        "Embedding words: done, 40 s",
    ]
    assert not any(ord(letter) < 32 and letter != "\n" for letter in error)


def test_work_that_goes_on_by_itself_is_counted_from_what_was_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with counting(100, "Converting images", 40) as advance:
        for _ in range(3):
            clock[0] += 9
            advance(20)
    assert capsys.readouterr().err.splitlines() == [
        "Converting images: 60 of 100, 9 s",
        "Converting images: done, 27 s",
    ]


def test_what_is_done_at_once_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], "Embedding words")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "SILENT", 0.0)
    assert list(progress([1, 2], "Embedding words")) == [1, 2]
    assert "Embedding words" in terminal.getvalue()
    assert terminal.getvalue().rstrip(" ").endswith("\r")


def test_of_several_processes_one_speaks(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    for _ in progress(range(9), "Embedding words"):
        clock[0] += 9
    assert capsys.readouterr().err == ""


def test_a_watcher_is_told_instead(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int, str]] = []
    with watched(lambda *state: told.append(state)):
        assert list(progress("ab", "words")) == ["a", "b"]
    assert told == [(0, 2, "words"), (1, 2, "words")]
    assert list(progress("ab", "words")) == ["a", "b"]
    assert len(told) == 2


def test_work_without_steps_speaks_until_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SILENT", 0.01)
    spoken: list[str] = []
    with busy("Exporting"):
        while not spoken:
            time.sleep(0.01)
            spoken += capsys.readouterr().err.splitlines()
    assert spoken[0] == "Exporting: 0 s"
    with pytest.raises(ValueError, match="broken"), busy("Exporting"):
        raise ValueError("broken")


@pytest.mark.parametrize("bar", ["true", "false"])
def test_a_run_without_a_terminal_gets_lines_unless_it_wants_none(
    bar: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SILENT", 0.0)
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    files = (ROOT / "configs/methods/patch_text.yaml", ROOT / "configs/data/toy.yaml", small)
    fit = ["fit", *(word for file in files for word in ("-c", str(file))), "--run_dir", str(tmp_path / "run")]
    short = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "2", "--trainer.val_check_interval", "2"]
    assert main([*fit, *short, "--trainer.enable_progress_bar", bar]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith(("Training", "Validating"))]
    assert bool(re.search(r"^Training, steps: 2 of 2, \d+ s, train/loss [\d.]+$", said.err, re.MULTILINE)) == (
        bar == "true"
    )
    assert any(line.startswith("Validating, batches: 2 of 2") for line in lines) == (bar == "true")
    assert bool(lines) == (bar == "true")
    assert "\r" not in said.out + said.err
