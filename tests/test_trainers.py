"""Strategies and precisions of `configs/trainer`, each tried where it can run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.runs.test_processes import TWO, start
from tests.runs.test_resume import assert_same_end, fault, fit, weights

EACH = ["--checkpoint.every_n_train_steps", "1"]


def trainer(*names: str) -> list[str]:
    """Arguments that stack files of `configs/trainer`, on the CPU where they say nothing else."""
    return [part for name in names for part in ("-c", str(ROOT / f"configs/trainer/{name}.yaml"))]


def state(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = weights(run / f"checkpoints/{f'step-{step}' if step else 'last'}.ckpt")[
        "state_dict"
    ]
    return found


@pytest.fixture(scope="module")
def plain(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "plain"
    assert fit(small, run, *EACH, "--checkpoint.keep_last", "9") == 0
    return run


def test_bf16_trains_in_bfloat16_and_saves_float32(small: Path, plain: Path, tmp_path: Path) -> None:
    assert fit(small, tmp_path / "run", *trainer("bf16")) == 0
    found, expected = state(tmp_path / "run"), state(plain)
    assert all(tensor.dtype == expected[name].dtype for name, tensor in found.items())
    assert not all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    close = [torch.allclose(found[name], tensor, rtol=0.1, atol=5e-3) for name, tensor in expected.items()]
    assert all(close)


def test_an_averaged_and_accumulated_run_goes_on_where_it_was_stopped(small: Path, tmp_path: Path) -> None:
    options = trainer("accumulate", "weight_average")
    assert fit(small, tmp_path / "whole", *options) == 0
    run = tmp_path / "run"
    assert fit(small, run, *options, *fault("SignalAtStep", step=3)) == 75
    assert weights(run / "checkpoints/last.ckpt")["SegmentationDataModule"]["batches"] == 12
    assert fit(small, run, *options) == 0
    assert_same_end(run, tmp_path / "whole")
    found, expected = (weights(folder / "checkpoints/last.ckpt") for folder in (run, tmp_path / "whole"))
    assert found["trained_state"].keys() == expected["trained_state"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(found["trained_state"][name], tensor) for name, tensor in expected["trained_state"].items())


def test_the_average_is_one_and_is_what_is_validated(small: Path, plain: Path, tmp_path: Path) -> None:
    """Training is that of a run without it; each checkpoint has the average of the weights so far."""
    run = tmp_path / "run"
    decay = ["--trainer.callbacks.decay", "0.5"]
    assert fit(small, run, *EACH, "--checkpoint.keep_last", "9", *trainer("weight_average"), *decay) == 0
    average = None
    for step in range(1, 5):
        checkpoint, now = weights(run / f"checkpoints/step-{step}.ckpt"), state(plain, step)
        assert all(torch.equal(checkpoint["trained_state"][name], tensor) for name, tensor in now.items())
        if average is not None:
            average = {name: (tensor + now[name]) / 2 for name, tensor in average.items()}
            for name, tensor in average.items():
                assert torch.allclose(checkpoint["state_dict"][name], tensor, atol=1e-6), (step, name)
        else:
            average = checkpoint["state_dict"]
            assert any(not torch.equal(average[name], tensor) for name, tensor in now.items())


@pytest.mark.slow
def test_a_sharded_run_is_that_of_ddp_and_its_checkpoints_go_on_anywhere(small: Path, tmp_path: Path) -> None:
    clipped = ["--trainer.gradient_clip_val", "0.5", *EACH, "--checkpoint.keep_last", "9"]
    run_both(small, {tmp_path / "ddp": clipped, tmp_path / "fsdp": [*trainer("fsdp"), *clipped]})
    ddp, fsdp = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in ("ddp", "fsdp"))
    assert fsdp["ovsl"]["method"] == ddp["ovsl"]["method"] == "ovsl.methods.patch_text.module.PatchText"
    assert fsdp["state_dict"].keys() == ddp["state_dict"].keys()
    for name, tensor in ddp["state_dict"].items():
        assert torch.allclose(fsdp["state_dict"][name], tensor, atol=1e-5), name
    one, two = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (fsdp, ddp))
    assert all(torch.allclose(one[key]["exp_avg"], value["exp_avg"], atol=1e-5) for key, value in two.items())
    # Its third checkpoint, in processes that shard, and in ones that do not.
    options = [*clipped, "--ckpt_path", str(tmp_path / "fsdp/checkpoints/step-3.ckpt")]
    again = {tmp_path / "ddp again": options, tmp_path / "fsdp again": [*trainer("fsdp"), *options]}
    run_both(small, again)
    for run in again:
        for key, tensor in ddp["state_dict"].items():
            assert torch.allclose(state(run)[key], tensor, atol=1e-5), (run, key)


def run_both(small: Path, runs: dict[Path, list[str]]) -> None:
    """Train in two processes each, side by side."""
    processes = [start(small, run, *TWO, *options) for run, options in runs.items()]
    for process in processes:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output


@pytest.mark.gpu
@pytest.mark.parametrize(
    "names", [("bf16",), ("fp16",), ("fp16", "weight_average"), ("ddp", "fsdp"), ("ddp", "accumulate")]
)
def test_on_a_gpu(names: tuple[str, ...], small: Path, tmp_path: Path) -> None:
    where = ["--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.max_steps", "2"]
    process = start(small, tmp_path / "run", *trainer(*names), *where)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert weights(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("names", [("ddp",), ("ddp", "fsdp"), ("ddp", "sync_batchnorm")])
def test_on_two_gpus(names: tuple[str, ...], small: Path, tmp_path: Path) -> None:
    where = [
        "--trainer.accelerator",
        "gpu",
        "--trainer.devices",
        "2",
        "--trainer.max_steps",
        "2",
        "--data.batch_size",
        "2",
    ]
    process = start(small, tmp_path / "run", *trainer(*names), *where)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
