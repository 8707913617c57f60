"""Converted datasets in a repository of the Hub: pushed whole, streamed back, refused without a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hub import Hub, serve
from tests.prepare.trees import TREES


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Hub, Path]:
    """One client run that did everything."""
    folder = tmp_path_factory.mktemp("push")
    TREES["camvid"](folder / "release")
    for split in ("train", "trainannot"):  # more than one file
        (one,) = (folder / f"release/CamVid/{split}").iterdir()
        for number in range(4):
            one.with_name(f"{number}.png").write_bytes(one.read_bytes())
    (folder / "repos").mkdir()
    with serve(folder / "repos") as hub:
        hub.users = {"hf_of_acme": "acme"}
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "OVSL_DATA")}
        client = subprocess.run(
            [sys.executable, "-m", "tests.prepare.hub_client", str(folder / "release")],
            cwd=folder,
            env={**environment, **hub.environment(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert client.returncode == 0, client.stderr[-3000:]
    return json.loads((folder / "found.json").read_text()), hub, folder


def test_without_a_token_nothing_is_begun(pushed: tuple[dict, Hub, Path]) -> None:
    found, _, _ = pushed
    assert found["no token"]["status"] == 2
    assert "no token to write to 'acme/camvid' of the Hub: set HF_TOKEN" in found["no token"]["error"][0]
    assert not found["made"]


def test_a_push_is_one_commit_of_all_files(pushed: tuple[dict, Hub, Path]) -> None:
    found, hub, folder = pushed
    assert found["pushed"]["status"] == 0, found["pushed"]
    assert "/datasets/acme/camvid/commit/" in found["pushed"]["out"]
    assert len(hub.commits) == 2
    assert sorted(hub.commits[0]) == sorted(file.name for file in (folder / "data/camvid").iterdir())
    assert "acme/camvid" in hub.private


def test_a_later_push_leaves_no_old_files(pushed: tuple[dict, Hub, Path]) -> None:
    found, _, folder = pushed
    assert found["again"]["status"] == 0, found["again"]
    there = {file.name: file.read_bytes() for file in (folder / "repos/acme/camvid").iterdir()}
    assert there == {file.name: file.read_bytes() for file in (folder / "two").iterdir()}


def test_what_was_pushed_streams_back_pixel_by_pixel(pushed: tuple[dict, Hub, Path]) -> None:
    found, _, _ = pushed
    assert found["rows"] == 5
    assert found["same"]


def test_refusals_name_the_repository_and_the_token(pushed: tuple[dict, Hub, Path]) -> None:
    found, _, _ = pushed
    assert found["of another"]["status"] == found["no name"]["status"] == 2
    assert "as 'other/camvid'" in found["of another"]["error"][0]
    assert "set HF_TOKEN to a token that may write" in found["of another"]["error"][0]
    assert "write OWNER/NAME" in found["no name"]["error"][0]
    assert "'acme/camvid'" in found["stranger"]
    assert "HF_TOKEN" in found["stranger"]
