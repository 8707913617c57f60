"""Every suite from small releases to its table: our converters, its sizes, splits and measures, one method."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ovsl.__main__ import main
from ovsl.evaluation import DatasetEvaluation
from ovsl.suites import Suite, execution
from tests.prepare.trees import TREES, write_labels

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 24},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""With large patches, since photos of 32 pixels are made as large as the suites want them."""
CONVNEXT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "convnext": {"depths": [1] * 4, "dims": [8, 12, 16, 24]}},
    "text_cfg": CLIP["text_cfg"],
}
MASK_CLIP = {"class_path": "MaskCLIP", "init_args": {"clip": {"model": "tiny", "config": CLIP}, "templates": "single"}}
SUITES = ("toy", "camvid", "open_vocabulary", "zero_shot", "training_free", "tcl", "panoptic", "mess_like")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every release that a suite names, as `ovsl prepare` makes it of a small tree in the official layout."""
    data = tmp_path_factory.mktemp("data")
    names = {name for suite in SUITES for name in Suite.load(suite).datasets} & TREES.keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVSL_DATA", str(data))
        for name in sorted(names | {"camvid"}):
            tree = tmp_path_factory.mktemp(name)
            truth = TREES[name](tree)
            if name == "ade20k_150":
                for split, part in (("train", "training"), ("validation", "validation")):
                    for image, labels in truth[split].items():
                        beds = np.zeros((*labels.shape, 3), np.uint8)
                        beds[4:16, 4:16] = (1, 1, 0)
                        write_labels(tree / f"ADEChallengeData2016/annotations_instance/{part}/{image}.png", beds)
            assert main(["prepare", name, "--from", str(tree), "--workers", "1"]) == 0
        yield data


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, releases: Path) -> Path:
    """A configuration of a method that runs at once; the tests of a suite run in this process."""

    def run_here(cell: execution.Runnable, output: int | None, request: object) -> int:
        return next((status for command in cell.commands() if (status := main(command))), 0)

    monkeypatch.setattr(execution, "_first_failure", run_here)
    monkeypatch.chdir(tmp_path)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "limit_test_batches": 4}
    quiet = {"trainer": trainer, "pictures": {"count": 0}, "extremes": {"count": 0}, "data": {"num_workers": 0}}
    file = tmp_path / "method.yaml"
    file.write_text(yaml.safe_dump({"model": MASK_CLIP, **quiet}))
    return file


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = (json.loads(file.read_text()) for file in folder.glob("results/test-*.json"))
    return {result["dataset"]: result for result in found}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "zero_shot" else pytest.mark.slow) for name in SUITES]
)
def test_a_suite_runs_at_its_sizes_and_ends_with_a_table(
    name: str, method: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: dict[str, set[int]] = {}
    update = DatasetEvaluation.update

    def watched(self: DatasetEvaluation, batch: Any) -> Any:
        sides.setdefault(self.task.name, set()).update(min(image.shape[1:]) for image in batch["image"])
        return update(self, batch)

    monkeypatch.setattr(DatasetEvaluation, "update", watched)
    if name == "panoptic":  # of a method that predicts masks, after one step
        content = yaml.safe_load(method.read_text())
        content["model"] = {"init_args": {"clip": {"model": "tiny", "config": CONVNEXT}, "templates": "single"}}
        method.write_text(yaml.safe_dump(content))
        fit = ["fit", "-c", "ovsl:methods/fc_clip", "-c", "ovsl:data/toy", "-c", str(method), "--run_dir", "run"]
        assert main([*fit, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]) == 0
        method.write_text(yaml.safe_dump({"base": "ovsl:methods/fc_clip", **content}))
    assert main(["test", "--suite", name, "-c", str(method), "--run_dir", "run"]) == 0
    suite, found = Suite.load(name), results(Path(f"run-{name}"))
    assert found.keys() == suite.datasets.keys()
    table = Path(f"run-{name}/table.md").read_text()
    for dataset, settings in suite.datasets.items():
        result = found[dataset]
        assert f"| {dataset} " in table
        assert result["images"] > 0
        defined = {figure for figure, value in result["metrics"].items() if value is not None}
        # Things of the small Cityscapes are smaller than what its rules of AP count.
        measures = {"PQ"} if dataset == "cityscapes_19" else {"PQ", "AP"}
        assert defined >= {"mIoU"} | (measures if name == "panoptic" else set()), dataset
        assert defined == result["intervals"].keys()
        if "split" in settings:
            assert {entry["seen"] for entry in result["per_class"]} == {True, False}
        if "transform" in settings:
            assert sides[dataset] == {settings["transform"]["short_side"]}


@pytest.mark.slow
def test_a_suite_without_one_of_its_datasets_names_it_and_goes_on_when_it_is_there(
    method: Path, releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(releases, folder)
    (folder / "mapillary_vistas").rename(tmp_path / "away")
    monkeypatch.setenv("OVSL_DATA", str(folder))
    command = ["test", "--suite", "mess_like", "-c", str(method), "--run_dir", "run"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "failed: mapillary_vistas_65" in error
    assert "Dataset 'mapillary_vistas_65' is not here" in error
    assert "`ovsl prepare mapillary_vistas_65 --from DIR`" in error
    assert set(results(Path("run-mess_like"))) == {"foodseg_103", "cityscapes_19", "camvid"}
    (tmp_path / "away").rename(folder / "mapillary_vistas")
    assert main(command) == 0
    assert "3 of 4 runs are finished already, 1 to go" in capsys.readouterr().out
    assert len(results(Path("run-mess_like"))) == 4
