"""The commands and the Python of the README are true: each is taken as it stands by the part that would run it."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsl.__main__ import VERBS, main
from ovsl.data import ToySource
from ovsl.tools.report import collect
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
NOT_THERE = {"convert": "There is no file 'RELEASED.pth'", "report": "there is no directory 'runs/a'"}
"""What the tools answer once they have understood a command whose files exist in the README alone."""


def commands() -> list[list[str]]:
    """Every `ovsl` line of a code block, all its optional parts given, the first of each choice taken."""
    lines = [line for kind, text in BLOCKS if not kind for line in text.replace("\\\n", " ").splitlines()]
    found = [line for line in lines if line.startswith("ovsl ")]
    plain = [re.sub(r"\|\w+", "", re.sub(r"[\[\]](?![^']*')", "", line)) for line in found]
    return [shlex.split(line, comments=True)[1:] for line in plain]


PHOTOS = [command for command in commands() if "ovsl:data/folder" in command or "runs/photos/config.yaml" in command]
"""From a folder of photos to a model; these run."""


@pytest.mark.parametrize("command", [command for command in commands() if command not in PHOTOS], ids=" ".join)
def test_a_command_is_understood(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    if command[0] in NOT_THERE:
        assert main(command) == 2
        assert NOT_THERE[command[0]] in capsys.readouterr().err
        return
    if "--ckpt_path" in command:
        assert main(command) == 2
        assert "There is no checkpoint 'zegclip.ckpt'" in capsys.readouterr().err
        return
    files = [word for flag, word in pairwise(command) if flag == "-c"]
    if any(file.startswith("runs/") for file in files):  # what the command before it has written
        assert command[0] in VERBS
        return
    with pytest.raises(SystemExit) as ended:
        main(command if "--model.help" in command else [*command, "--print_config"])
    assert ended.value.code == 0
    assert "clip" in capsys.readouterr().out


def test_a_folder_of_photos_becomes_a_trained_and_tested_model_in_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVSL_DATA", raising=False)
    for folder in ("images", "masks"):
        Path("photos", folder).mkdir(parents=True)
    scenes = ToySource(seed=0, length=20)
    for number in range(20):
        scene = scenes.row(number)
        Image.fromarray(scene.image).save(f"photos/images/{number}.jpg", quality=95)
        Image.fromarray(np.asarray(scene.semantic).astype(np.uint8)).save(f"photos/masks/{number}.png")
    Path("photos/classes.txt").write_text("\n".join(Vocabulary.load("toy").classes))

    assert [command[0] for command in PHOTOS] == ["data", "fit", "test"]
    check, fit, test = PHOTOS
    assert main(check) == 0
    short = ["--trainer.max_steps", "10", "--trainer.val_check_interval", "10", "--data.num_workers", "0"]
    assert main([*fit, *short, "--trainer.enable_progress_bar", "false"]) == 0
    assert main([*test, "--trainer.enable_progress_bar", "false"]) == 0
    assert sorted(path.name for path in Path("runs/data").iterdir()) == [
        "folder-photos-validation.png", "folder-train.png", "folder.json"
    ]  # fmt: skip
    (result,) = collect([Path("runs/photos")], "test")
    assert result.images == 4
    assert result.metrics["mIoU"] > 0.2, "the shipped toy CLIP knows these words"


def test_a_released_clip_is_set_where_the_readme_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    sentence = re.search(r"With a released CLIP, take\s+`([\w/.]+)` with\s+`(--model[^`]*)`", README)
    assert sentence is not None
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", sentence[1], "-c", "ovsl:data/camvid", *sentence[2].split(), "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "pretrained: openai" in printed
    assert "config: null" in printed, "a released CLIP with a configuration of one's own would be refused"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text((ROOT / "configs/methods/maskclip.yaml").read_text())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("photo.jpg")
    (program,) = (text for kind, text in BLOCKS if kind == "python")
    exec(program)
    assert Image.open("overlay.png").size == (60, 40)
