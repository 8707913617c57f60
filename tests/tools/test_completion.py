"""Words of the command, completed by real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ovsl.__main__ import TOOLS, main
from ovsl.help import VERBS
from ovsl.tools import completion

OPTIONS = {"fit": ["--data.batch_size", "--model.clip.model", "--model.clip.pretrained"], "report": ["--html"]}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script with few options, since reading all of them takes seconds."""
    monkeypatch.setattr(completion, "command_options", lambda command: OPTIONS.get(command, []))
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "ovsl"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ovsl fi", {"fit"}),
        ("ovsl ", {*VERBS, *TOOLS}),
        ("ovsl fit --model.clip.", {"--model.clip.model", "--model.clip.pretrained"}),
        ("ovsl report runs --h", {"--html"}),
        ("ovsl report --model.cl", set()),
        ("ovsl fit --model Zeg", {"ZegCLIP"}),
        ("ovsl fit -c ovsl:data/cam", {"data/camvid"}),
        ("ovsl test -c ovsl:data/toy -c ovsl:trainer/cp", {"trainer/cpu"}),
    ],
)
def test_bash_completes(line: str, completed: set[str], script: Path) -> None:
    program = f'source {script}; COMP_LINE="{line}"; COMP_POINT={len(line)}; _ovsl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == completed
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(script: Path) -> None:
    program = f"""
emulate sh; complete() {{ :; }}; source {script}
COMP_LINE="ovsl test -c ovsl:data/cam"; COMP_POINT=${{#COMP_LINE}}; _ovsl; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["ovsl:data/camvid"], "")


@pytest.mark.parametrize(
    ("command", "there", "absent"),
    [
        ("report", {"--html", "--average_seeds"}, {"--model", "--run_dirs"}),
        ("fit", {"--trainer.max_steps", "--model.clip.pretrained", "--data.batch_size", "--run_dir"}, {"--html"}),
        ("predict", {"--data.images", "--ckpt_path", "--predictions.overlays"}, {"--data.batch_sizes"}),
    ],
)
def test_options_are_those_of_the_parsers(command: str, there: set[str], absent: set[str]) -> None:
    options = set(completion.command_options(command))
    assert there <= options
    assert not absent & options
