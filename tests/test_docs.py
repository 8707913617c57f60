"""The documentation: what is made from files is whole; the site builds without a warning and without the network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ovsl.configuration import read_configuration
from tests.conftest import ROOT

EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
LINE = {"clearclip", "corrclip", "naclip", "proxyclip", "sclip"}
"""Methods of the folder `training_free`."""
ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^"' >]+""")
"""What a browser would load from another server as soon as the page is opened."""


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_experiment_is_in_the_zoo(hooks: ModuleType) -> None:
    zoo = hooks.zoo()
    sections = re.findall(r"^### (\S+)", zoo, re.MULTILINE)
    assert sections == [path.relative_to(ROOT / "experiments").with_suffix("").as_posix() for path in EXPERIMENTS]
    rows = re.findall(r"^\| \[([^\]]+)\]", zoo, re.MULTILINE)
    assert rows == sections


def test_the_zoo_quotes_every_published_figure(hooks: ModuleType) -> None:
    sections = dict(re.findall(r"^### (\S+) .*?\n(.*?)(?=^##|\Z)", hooks.zoo(), re.MULTILINE | re.DOTALL))
    quoted = 0
    for path in EXPERIMENTS:
        section = sections[path.relative_to(ROOT / "experiments").with_suffix("").as_posix()]
        tables = [line for line in section.splitlines() if line.startswith("|")]
        data = read_configuration(path).get("data") or {}
        for dataset, settings in (data.get("evaluation") or {}).items():
            for figure in ((settings or {}).get("published") or {}).values():
                (row,) = (line for line in tables if line.startswith(f"| {dataset} |"))
                assert f"| {figure} |" in row
                quoted += 1
    assert quoted > 100


def test_what_was_reproduced_is_said_of_every_folder_and_no_other() -> None:
    said = yaml.safe_load((ROOT / "docs/reproduced.yaml").read_text(encoding="utf-8"))
    assert set(said) == {path.relative_to(ROOT / "experiments").parts[0] for path in EXPERIMENTS}
    cases = {path.name for path in (ROOT / "tests/golden/cases").iterdir()}
    for folder, sentence in said.items():
        methods = LINE if folder == "training_free" else {folder}
        assert ("golden cases" in sentence) == (methods <= cases), folder


def test_every_module_has_a_place_in_the_reference(hooks: ModuleType) -> None:
    listed = {module for modules in hooks.packages().values() for module in modules}
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "ovsl").rglob("*.py"))
    assert listed == {".".join(path.parts) for path in files if not path.name.startswith("_")}


def test_the_site_builds_and_loads_nothing_from_elsewhere(hooks: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assert not ELSEWHERE.findall(page.read_text(encoding="utf-8")), page
    styles = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.css")]
    assert styles
    assert not any(re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style) for style in styles)
