"""One process owns a run directory, and a dead one does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ovsl.errors import InputError
from ovsl.runs import owner
from ovsl.runs.files import write_text
from ovsl.runs.owner import RunLock


def test_a_directory_whose_run_is_alive_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(InputError, match=f"alive .process {os.getpid()}"):
        RunLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    code = f"import os; from ovsl.runs.owner import RunLock; RunLock(__import__('pathlib').Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code + ".__enter__(); os.kill(os.getpid(), 9)"], check=False)
    assert (tmp_path / "owner.json").is_file()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()


def test_a_process_of_the_same_number_is_told_from_the_owner(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        content = json.loads((tmp_path / "owner.json").read_text())
    (tmp_path / "owner.json").write_text(json.dumps({**content, "started": "1"}))
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_on_another_machine_lives_by_its_signs(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT", 0.05)
    monkeypatch.setattr(owner, "PATIENCE", 1.0)
    file, ended = tmp_path / "owner.json", threading.Event()
    with RunLock(tmp_path):
        content = json.loads(file.read_text()) | {"machine": "another"}

    def beat() -> None:
        while not ended.wait(0.05):
            content["beats"] += 1
            write_text(file, json.dumps(content))

    write_text(file, json.dumps(content))
    elsewhere = threading.Thread(target=beat)
    if alive:
        elsewhere.start()
        try:
            with pytest.raises(InputError, match="alive"):
                RunLock(tmp_path).__enter__()
        finally:
            ended.set()
            elsewhere.join()
    else:
        with RunLock(tmp_path):
            assert json.loads(file.read_text())["machine"] != "another"
