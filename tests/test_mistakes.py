"""Mistakes end in one sentence that names the nearest thing there is; what needs no torch does without."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ovsl import __version__
from ovsl.__main__ import main
from ovsl.errors import InputError, sentence
from ovsl.tools.convert import read_state_dict
from tests.conftest import ROOT

FIT = [
    "fit", "-c", str(ROOT / "configs/methods/patch_text.yaml"), "-c", str(ROOT / "configs/data/toy.yaml"),
    "--trainer.accelerator", "cpu", "--run_dir", "run",
]  # fmt: skip


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ovsl: ")]
    assert len(error) == 1
    return error[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*FIT, "--model.templatess", "x"], "no option '--model.templatess' of PatchText: did you mean 'templates'?"),
        ([*FIT, "--model.clip.modell", "x"], "did you mean 'clip.model'?"),
        ([*FIT, "--trainer.max_stepz", "3"], "no option '--trainer.max_stepz': did you mean 'trainer.max_steps'?"),
        ([*FIT, "--data.batch_sizes", "3"], "of SegmentationDataModule: did you mean 'batch_size'?"),
        ([*FIT, "--trainer.callbacks+=EarlyStoping"], "for --trainer.callbacks: did you mean 'EarlyStopping'?"),
        ([*FIT, "--model.optimizer", "AdamX"], "did you mean 'Adam"),
        ([*FIT, "--model.optimizer.lr", "fast"], "--model.optimizer.lr cannot be 'fast': float is expected"),
        ([*FIT, "--data.train.class_path", "ToySorce"], "did you mean 'ToySource'?"),
        (["fit", "--model", "PatchTxt"], "no 'PatchTxt' for --model: did you mean 'PatchText'?"),
        (["fit", "--model.help", "DeepLab"], "there are CATSeg, "),
        ([*FIT, "--data.batch_size", "-4"], "data.batch_size is -4: it has to be at least 1"),
        ([*FIT, "--data.train_transform.crop_size", "0"], "crop_size is 0: it has to be at least 1"),
        ([*FIT, "--trainer.logger", "WandbLogger"], "pip install 'ovsl[wandb]'"),
        (["predict", "--model", "MaskCLIP", "--data.images", "x.jpg"], "needs --data.vocabulary"),
        ([*FIT, "-c", "here.yamll"], "no configuration file 'here.yamll': did you mean here.yaml?"),
        ([*FIT, "-c", "here.yaml"], "no option '--model.temprature' of PatchText: did you mean 'temperature'?"),
        (["report", "--formt", "csv"], "no option '--formt': did you mean 'format'?"),
        (["fitt"], "no 'ovsl fitt': did you mean 'fit'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.yaml").write_text("model:\n  init_args:\n    temprature: 3\n")
    if "wandb" in message:
        monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(arguments) == 2
    assert message in last_line(capsys)
    assert not Path("run/run.json").exists()


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file/run"):
        assert main([*FIT[:-2], "--run_dir", str(run)]) == 2
        assert f"run directory '{run}' cannot be made" in last_line(capsys)


def test_a_reader_that_has_enough_ends_the_command_without_a_word() -> None:
    for words in (["--help"], ["fit", "--model", "ZegCLIP", "--print_config"]):
        done = subprocess.Popen(
            [sys.executable, "-m", "ovsl", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        done.stdout.close()
        assert done.stderr.read() == b""
        assert done.wait() == 141


def test_ctrl_c_in_the_first_seconds_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(given: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ovsl.__main__.check_written", interrupted)
    assert main(FIT) == 130
    assert "the same command goes on" in last_line(capsys)


@pytest.mark.parametrize("nested", ["model.clip.pretrained", "model.clip.config", "data.evaluation.toy.split"])
def test_null_is_null_in_options_of_classes(nested: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*FIT, "--model.clip.pretrained", "x", f"--{nested}", "null", "--print_config"])
    printed = capsys.readouterr().out
    assert "None" not in printed
    assert ("split: zero_shot" in printed.partition("\n    evaluation:")[2]) == (nested != "data.evaluation.toy.split")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room or choose another folder"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "make room or choose another folder"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/run"), "'/x/run'"),
        (ModuleNotFoundError("No module named 'cv3'", name="cv3"), "pip install cv3"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_one_sentence(error: Exception, message: str) -> None:
    said = sentence(error)
    assert said is not None
    assert message in said[0]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x"), ModuleNotFoundError("x", name="ovsl.gone")])
def test_errors_of_the_program_keep_their_traceback(error: Exception) -> None:
    assert sentence(error) is None


def test_what_is_no_checkpoint_is_not_trusted_either(tmp_path: Path) -> None:
    for name, content in (("notes.md", b"# notes"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="is no checkpoint"):
            read_state_dict(tmp_path / name, trust=True)
    for name, content in (("cut.pth", b"PK\x03\x04 cut short"), ("cut.safetensors", b"\x10")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cut short"):
            read_state_dict(tmp_path / name)


def test_help_version_typos_and_report_do_without_torch(tmp_path: Path) -> None:
    program = """
import json, sys
from ovsl.__main__ import main
statuses = [main(args) for args in json.loads(sys.argv[1])]
heavy = sorted({"torch", "lightning", "scipy", "matplotlib"} & set(sys.modules))
print(json.dumps([statuses, heavy]))
"""
    (tmp_path / "mine.yaml").write_text("model: {class_path: ZegCLIP, init_args: {dropuot: 0}}")
    calls = [
        ["--help"],
        ["--version"],
        ["fitt"],
        ["fit", "-c", "missing.yaml"],
        ["report", str(tmp_path)],
        [],
        ["fit", "-c", "ovsl:methods/patch_txt"],
        ["fit", "-c", str(tmp_path / "mine.yaml")],
        [*FIT, "--model.templatess", "x"],
        [*FIT, "--model.clip.modell", "x"],
        [*FIT, "--data.batch_sizes", "2"],
        [*FIT, "--trainer.max_stepz", "3"],
        [*FIT, "--max_steps", "3"],
        [*FIT, "--checkpoint.moniter", "x"],
        [*FIT, "--data.vocabulary", "ade20k_15"],
        ["export", "--model", "SAN", "--model.sizes.widht", "3"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(calls)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    *printed, last = done.stdout.splitlines()
    assert json.loads(last) == [[0, 0, *[2] * 14], []]
    assert f"ovsl {__version__}" in printed
    assert "holds no results" in done.stderr
    near = re.findall(r"did you mean '?(?:ovsl:)?([\w./]+)'?", done.stderr)
    assert near == [
        "fit", "methods/patch_text", "dropout", "templates", "clip.model", "batch_size", "trainer.max_steps",
        "trainer.max_steps", "checkpoint.monitor", "ade20k_150", "sizes.width",
    ]  # fmt: skip
