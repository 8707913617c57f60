"""Configurations that come with the package, by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ovsl import __version__
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


@pytest.mark.slow
def test_a_wheel_alone_is_enough(tmp_path: Path) -> None:
    """As `pip install ovsl` in an environment that has the packages, but not this repository."""
    pytest.importorskip("hatchling")
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 5 << 20
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "alone")], check=True)
    binaries = tmp_path / "alone/bin"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [str(binaries / "pip"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=environment)
    (site,) = (tmp_path / "alone/lib").glob("python*/site-packages")
    # What is in such a folder can be imported, but its own .pth files, this repository's among them, are not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def printed(*command: str) -> str:
        command = (str(binaries / command[0]), *command[1:])
        return subprocess.check_output(command, cwd=elsewhere, env=environment, text=True)

    assert printed("ovsl", "--version") == f"ovsl {__version__}\n"
    quick = ["--trainer.limit_test_batches", "2", "--data.num_workers", "0", "--run_dir", "run"]
    printed("ovsl", "test", "-c", "ovsl:methods/maskclip", "-c", "ovsl:data/toy", "-c", "ovsl:trainer/cpu", *quick)
    assert "MaskCLIP" in printed("ovsl", "report", "run")
    found = printed("python", "-c", "import ovsl; print(ovsl.__file__)")
    assert Path(found.strip()).is_relative_to(site)


def test_the_containers_pin_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "containers/constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for recipe in ("Dockerfile", "ovsl.def"):
        text = (ROOT / "containers" / recipe).read_text(encoding="utf-8")
        assert "-c /source/containers/constraints.txt" in text
        torch = dict(re.findall(r"\b(torch|torchvision)==([\d.]+)", text))
        for requirement in map(Requirement, project["dependencies"]):
            version = (pinned | torch)[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{recipe}: {requirement.name} {version}"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == __version__
