"""Configurations that come with the package, by name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ovsl.__main__ import main
from ovsl.shipped import shipped_configuration, shipped_configurations
from tests.conftest import ROOT


def test_every_configuration_has_a_name() -> None:
    files = {*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "experiments").rglob("*.yaml")}
    found = shipped_configurations()
    assert set(found.values()) == files, "two configurations share a name"
    assert shipped_configuration("zegclip/voc_inductive") == ROOT / "experiments/zegclip/voc_inductive.yaml"
    assert shipped_configuration("methods/maskclip") == ROOT / "configs/methods/maskclip.yaml"


def test_verbs_take_names(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for first in ("ovsl:methods/maskclip", str(ROOT / "configs/methods/maskclip.yaml")):
        with pytest.raises(SystemExit):
            main(["test", "-c", first, "--config=ovsl:data/toy", "--print_config"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "MaskCLIP" in printed[0]


def test_tools_take_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "-c", "ovsl:methods/maskclip", "--size", "32", "--classes", "3"]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["test", "profile"])
def test_an_unknown_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-c", "ovsl:zegclip/voc_inductiv"]) == 2
    error = capsys.readouterr().err
    assert "zegclip/voc_inductive" in error
    assert error.count("\n") == 1


def test_a_wheel_carries_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import ovsl.shipped as s; print(len(s.shipped_configurations()), s.shipped_configuration('data/toy')); "
    code += "from ovsl.configuration import read_configuration as read; "
    code += "print(read(s.shipped_configuration('zegclip/coco_supervised'))['data']['train'])"
    installed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    count, path, train = installed.stdout.split()
    assert int(count) == len(shipped_configurations())
    assert Path(path) == tmp_path / "site/ovsl/_shipped/configs/data/toy.yaml"
    assert train == "coco_stuff_171", "a base is found in the wheel"
    assert (tmp_path / "site/ovsl/data/catalogue.json").is_file()
