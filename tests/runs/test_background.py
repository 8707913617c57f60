"""Checkpoints are written beside training, from a copy, one at a time."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ovsl.callbacks import checkpoint as checkpoint_callback
from ovsl.runs import record
from ovsl.runs.background import BackgroundWriter, copy_to_host
from ovsl.runs.record import load_checkpoint_file, save_checkpoint_file
from tests.runs.test_checkpoint_files import content, equal, in_a_process
from tests.runs.test_resume import assert_same_end, fault, fit, weights


def test_a_copy_is_not_changed_by_training() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    state = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()], "loops": {"done": [1, 2]}}
    copied, before = copy_to_host(state), module.weight.detach().clone()
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 5.0
    state["loops"]["done"].append(3)
    assert torch.equal(copied["state_dict"]["weight"], before)
    assert copied["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3
    assert copied["loops"] == {"done": [1, 2]}


def test_tensors_that_are_one_are_one_in_the_copy() -> None:
    weight, empty = torch.ones(4), torch.empty(0)
    copied = copy_to_host({"a": weight, "b": weight.view(4), "c": weight[1:], "d": empty, "e": torch.empty(0)})
    assert copied["a"] is copied["b"] is not weight
    assert torch.equal(copied["c"], weight[1:])
    assert copied["c"] is not copied["a"]


def test_one_write_at_a_time_and_what_follows_only_after_a_good_one() -> None:
    writer, gate, done = BackgroundWriter(), threading.Event(), []
    writer.submit(lambda: (gate.wait(10), done.append("first"))[0] and None)
    writer.then(lambda: done.append("follows"))
    writer.check()
    assert done == [], "the caller goes on"
    gate.set()
    writer.submit(lambda: done.append("second"))
    writer.wait()
    assert done == ["first", "follows", "second"]

    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer.submit(fail)
    writer.then(lambda: done.append("never"))
    with pytest.raises(OSError, match="No space"):
        writer.wait()
    writer.wait()
    assert done == ["first", "follows", "second"]


def _killed_in_the_thread(path: Path) -> None:
    writer, begun = BackgroundWriter(), threading.Event()
    original = torch.save

    def half(value: Any, file: Any) -> None:
        file.write(b"half of it")
        file.flush()
        begun.set()
        threading.Event().wait(20)
        original(value, file)

    record.torch.save = half  # type: ignore[attr-defined]
    copied = copy_to_host(content(1))
    writer.submit(lambda: save_checkpoint_file(copied, path))
    begun.wait(10)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_in_the_middle_of_a_background_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "step-1.ckpt"
    save_checkpoint_file(content(0), path)
    assert in_a_process(_killed_in_the_thread, path) == -signal.SIGKILL
    assert equal(load_checkpoint_file(path), content(0))


def test_training_goes_on_while_a_checkpoint_is_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 1 ends only after step 2 was trained, and the file still has the weights of step 1."""
    assert fit(small, tmp_path / "plain", "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep_last", "9") == 0
    trained, threads = threading.Event(), set()

    def slow(state: Any, path: Path) -> None:
        threads.add(threading.current_thread().name)
        if path.name == "step-1.ckpt":
            assert trained.wait(60), "step 2 waited for the file of step 1"
        save_checkpoint_file(state, path)

    monkeypatch.setattr(checkpoint_callback, "save_checkpoint_file", slow)
    monkeypatch.setattr("tests.faults.BATCH_BEGUN", {2: trained.set})
    options = [*fault("CallAtBatch"), "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep_last", "9"]
    assert fit(small, tmp_path / "run", *options) == 0
    assert all(name.startswith("checkpoint writer") for name in threads)
    for step in range(1, 5):
        one, two = (weights(tmp_path / run / f"checkpoints/step-{step}.ckpt") for run in ("run", "plain"))
        assert equal(one["state_dict"], two["state_dict"]), step
    assert_same_end(tmp_path / "run", tmp_path / "plain")


def test_a_disk_that_fills_ends_the_run_in_one_sentence_and_the_older_checkpoint_stands(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, each = tmp_path / "run", ["--checkpoint.every_n_train_steps", "1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert fit(small, run, *each, *fault("FullDisk", step=2)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("ovsl: Cannot write")
    assert (run / "checkpoints/last.ckpt").readlink() == Path("step-2.ckpt")
    assert not list(run.rglob("*.partial"))
    assert fit(small, run, *each) == 0
    assert weights(run / "checkpoints/last.ckpt")["global_step"] == 4
