"""What a start does in a run directory, decided without a trainer and without writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ovsl
from ovsl.errors import InputError
from ovsl.runs.directory import RunDirectory, Start, plan


def config(run: Path, **changes: Any) -> dict[str, Any]:
    trainer = {"max_steps": 10, "fast_dev_run": False}
    model = {"class_path": "PatchText", "init_args": {"temperature": 20.0, "clip": {"config": None}}}
    whole = {
        "seed_everything": 0,
        "run_dir": str(run),
        "ckpt_path": None,
        "trainer": trainer,
        "model": model,
        "data": {},
    }
    return whole | changes


def finished(run: Path, step: int, **changes: Any) -> None:
    """A run directory with a checkpoint of a step."""
    RunDirectory(run).record_fit(config(run, **changes))
    checkpoint = run / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    clip = {"model": "tiny", "pretrained": None, "sha256": "0"}
    record = {"method": "PatchText", "settings": None, "clip": clip, "training_vocabulary": None}
    torch.save({"ovsl": record, "global_step": step, "state_dict": {}}, checkpoint)


def test_a_new_run_starts_afresh_and_nothing_is_written(tmp_path: Path) -> None:
    assert plan("fit", config(tmp_path / "run"), "PatchText", trainable=True) == Start()
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    finished(tmp_path, 4)
    start = plan("fit", config(tmp_path), "PatchText", trainable=True)
    assert start.checkpoint == tmp_path / "checkpoints/last.ckpt"
    assert start.message is not None
    assert start.message.endswith("from step 4.")
    assert not start.complete


def test_a_complete_run_is_left_alone_until_it_is_lengthened(tmp_path: Path) -> None:
    finished(tmp_path, 10)
    assert plan("fit", config(tmp_path), "PatchText", trainable=True).complete
    longer = config(tmp_path, trainer={"max_steps": 20, "fast_dev_run": False})
    assert not plan("fit", longer, "PatchText", trainable=True).complete


def test_evaluation_takes_the_checkpoint_that_is_given_or_the_last(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PatchText is trained, but no checkpoint was given"):
        plan("test", config(tmp_path), "PatchText", trainable=True)
    finished(tmp_path, 10)
    assert plan("test", config(tmp_path), "PatchText", trainable=True).checkpoint == tmp_path / "checkpoints/last.ckpt"
    given = config(tmp_path, ckpt_path="other.ckpt")
    assert plan("test", given, "PatchText", trainable=True).checkpoint == Path("other.ckpt")
    assert plan("test", config(tmp_path / "new"), "MaskCLIP", trainable=False) == Start()


def test_a_method_without_training_is_not_fitted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MaskCLIP has nothing to train"):
        plan("fit", config(tmp_path), "MaskCLIP", trainable=False)


def test_another_run_is_refused_and_an_option_of_another_version_is_not(tmp_path: Path) -> None:
    finished(tmp_path, 4)
    warm = config(tmp_path)["model"]["init_args"]
    other = config(tmp_path, model={"class_path": "PatchText", "init_args": warm | {"temperature": 5.0}})
    with pytest.raises(InputError, match=r"model\.temperature was 20\.0 and is 5\.0 now"):
        plan("fit", other, "PatchText", trainable=True)
    more = config(tmp_path, model={"class_path": "PatchText", "init_args": warm | {"sharpness": 2}})
    with pytest.raises(InputError, match=r"model\.sharpness was None and is 2 now"):
        plan("fit", more, "PatchText", trainable=True)
    record = tmp_path / "run.json"
    assert ovsl.__version__ in record.read_text()
    content = json.loads(record.read_text())
    content["starts"][0]["ovsl"] = "0.0.1"
    record.write_text(json.dumps(content))
    assert plan("fit", more, "PatchText", trainable=True).checkpoint is not None
    with pytest.raises(InputError, match="temperature"):
        plan("fit", other, "PatchText", trainable=True)


def test_a_key_named_like_one_that_is_no_identity_counts_all_the_same(tmp_path: Path) -> None:
    """Only `data.num_workers` itself may change, not what another option calls `num_workers`."""
    finished(tmp_path, 4, data={"init_args": {"num_workers": 2, "train": {"num_workers": 2}}})
    changed = {"init_args": {"num_workers": 0, "train": {"num_workers": 2}}}
    assert plan("fit", config(tmp_path, data=changed), "PatchText", trainable=True).checkpoint is not None
    changed = {"init_args": {"num_workers": 2, "train": {"num_workers": 0}}}
    with pytest.raises(InputError, match=r"data\.train\.num_workers"):
        plan("fit", config(tmp_path, data=changed), "PatchText", trainable=True)
