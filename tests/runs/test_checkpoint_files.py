"""Checkpoint files survive kills, full disks and damage: what is there is whole, or is refused."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ovsl.errors import InputError
from ovsl.runs.files import path_below, remove_orphans, whole_file
from ovsl.runs.record import load_checkpoint_file, save_checkpoint_file


def content(value: float = 0.0, size: int = 40) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(size, 20, generator=generator) + value for i in range(4)}
    return {"state_dict": weights, "global_step": int(value), "ovsl": {"method": "text", "settings": None}}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def in_a_process(function: Any, *arguments: Any) -> int:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _die_before(name: str, path: Path) -> None:
    def die(*arguments: Any, **options: Any) -> None:
        if name == "save":
            arguments[1].write(b"half of it")
            arguments[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(torch if name == "save" else os, name, die)
    save_checkpoint_file(content(1), path)


@pytest.mark.parametrize("operation", ["save", "fsync", "replace"])
def test_kill_at_any_point_of_a_save_leaves_the_old_checkpoint(operation: str, tmp_path: Path) -> None:
    path = tmp_path / "step-1.ckpt"
    save_checkpoint_file(content(0), path)
    assert in_a_process(_die_before, operation, path) == -signal.SIGKILL
    assert equal(load_checkpoint_file(path), content(0))
    left = [file for file in tmp_path.iterdir() if file != path]
    assert len(left) == 1
    assert remove_orphans(tmp_path) == left
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_a_living_process_writes_is_no_orphan(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as partial:
        partial.write_text("half")
        assert remove_orphans(tmp_path) == []
        partial.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


def _save_on_a_full_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint_file(content(1, size=4000), path)
    except OSError:
        os._exit(28)


def test_full_disk_leaves_the_old_checkpoint_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "step-1.ckpt"
    save_checkpoint_file(content(0), path)
    assert in_a_process(_save_on_a_full_disk, path) == 28
    assert equal(load_checkpoint_file(path), content(0))
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder_for_temporary_files_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    save_checkpoint_file(content(0), tmp_path / "step-1.ckpt")
    assert equal(load_checkpoint_file(tmp_path / "step-1.ckpt"), content(0))


def test_every_flipped_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "step-1.ckpt"
    save_checkpoint_file(content(0), path)
    whole, generator, noticed = path.read_bytes(), random.Random(0), 0
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        file = tmp_path / f"{position}.ckpt"
        file.write_bytes(damaged)
        try:
            assert equal(load_checkpoint_file(file), content(0)), f"byte {position}"
        except InputError:
            noticed += 1
    assert noticed > len(whole) // 37 // 2


@pytest.mark.parametrize("length", [0, 0.1, 0.9, -1])
def test_a_cut_checkpoint_is_refused(length: float, tmp_path: Path) -> None:
    path = tmp_path / "step-1.ckpt"
    save_checkpoint_file(content(0), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if length >= 0 else -1])
    with pytest.raises(InputError, match="damaged or cut short"):
        load_checkpoint_file(path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "a\0b", "x" * 300, "a\\..\\b"])
def test_names_that_leave_a_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name of a file"):
        path_below(tmp_path, name)


def test_names_with_folders_are_taken(tmp_path: Path) -> None:
    assert path_below(tmp_path, "a/b.1") == tmp_path / "a" / "b.1"
