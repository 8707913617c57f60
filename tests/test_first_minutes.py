"""The notebook of the docs runs from top to bottom.

Its outputs are saved in it; `python -m tests.test_first_minutes` runs it and saves them anew.
"""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs/first_minutes.ipynb"


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook, run in a folder of its own, without what libraries say on the way."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    about = deepcopy(notebook.metadata)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata = about
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)  # the same picture again
    return notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    return executed(tmp_path_factory.mktemp("notebook"))


def test_it_runs_and_says_what_it_was_saved_with(notebook: nbformat.NotebookNode) -> None:
    saved = nbformat.read(NOTEBOOK, as_version=4)
    for now, then in zip(notebook.cells, saved.cells, strict=True):
        assert [kind(each) for each in now.get("outputs", [])] == [kind(each) for each in then.get("outputs", [])]
    table = notebook.cells[-2].outputs[0].text
    assert "MaskCLIP  toy          20" in table


def test_what_is_saved_in_it_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/home/" not in text
    assert str(ROOT) not in text


def kind(output: nbformat.NotebookNode) -> list[str]:
    """A picture, or what is printed."""
    return sorted(output.data) if "data" in output else [output.name]


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
