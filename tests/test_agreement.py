"""Every method by its own configuration: test, predict, export and the Python API say the same of an image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import ovsl
import ovsl.methods
from ovsl.__main__ import main
from ovsl.data import ColorRegions, ToySource
from ovsl.results.confusion import Confusion
from ovsl.results.diagnosis_counts import DiagnosisCounts
from ovsl.results.image_counts import ImageCounts
from tests.conftest import ROOT

METHODS = sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml"))
NOT_EXPORTED = {"corrclip": "it merges the regions of a region map anew for every image"}
"""Methods that no ONNX file can hold, and why."""
SCENES = 2
TEST = ToySource(seed=2, length=SCENES)
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each method: two steps of training where it trains, then a test whose label maps are kept."""
    folder = tmp_path_factory.mktemp(request.param)
    small = folder / "small.yaml"
    toy = {"class_path": "ovsl.data.ToySource", "init_args": {"seed": 2, "length": SCENES}}
    evaluation = {"toy": {"vocabulary": "toy", "split": "zero_shot", "validation": toy, "test": toy}}
    settings = {
        "seed_everything": 0,
        "trainer": {**QUIET, "max_steps": 2, "limit_val_batches": 0, "val_check_interval": 2},
        "data": {"init_args": {"batch_size": 2, "num_workers": 0, "evaluation": evaluation}},
        "pictures": {"count": 1},
    }
    small.write_text(yaml.safe_dump(settings))
    method = ROOT / f"configs/methods/{request.param}.yaml"
    name = yaml.safe_load(method.read_text())["model"]["class_path"].rpartition(".")[2]
    trains = getattr(ovsl.methods, name).trainable
    configs = ["-c", str(method), "-c", str(ROOT / "configs/data/toy.yaml"), "-c", str(small)]
    command = [*configs, "--run_dir", str(folder / "run")]
    if trains:
        assert main(["fit", *command]) == 0
    assert main(["test", *command, "--trainer.callbacks+=tests.recorder.LabelRecorder"]) == 0
    for index in range(SCENES):
        Image.fromarray(TEST.row(index).image).save(folder / f"{TEST.row(index).id.replace('/', '_')}.png")
    return folder / "run"


def photos(run: Path) -> list[Path]:
    return sorted(run.parent.glob("*.png"))


def labels_of_test(run: Path) -> list[np.ndarray]:
    return [np.load(run / "labels" / f"{photo.stem}.npy") for photo in photos(run)]


def test_predict_and_the_python_api_agree_with_test(run: Path) -> None:
    settings = run / "predict.yaml"
    regions = regions_of(run)
    settings.write_text(yaml.safe_dump({"trainer": QUIET, **({"data": {"regions": regions}} if regions else {})}))
    images = json.dumps([str(photo) for photo in photos(run)])
    command = ["predict", "--run_dir", str(run), "-c", str(settings), "--data.images", images]
    method = [] if (run / "checkpoints").is_dir() else ["-c", str(model_only(run))]
    assert main([*command, *method, "--data.vocabulary", "toy"]) == 0
    segmenter = ovsl.load(run, device="cpu").with_words("toy", regions=ColorRegions() if regions else None)
    for photo, expected in zip(photos(run), labels_of_test(run), strict=True):
        with Image.open(run / "predictions" / f"{photo.stem}.labels.png") as file:
            assert np.array_equal(np.asarray(file), expected)
        found = segmenter(photo)
        assert np.array_equal(found.labels, expected)
        record = json.loads((run / "predictions" / f"{photo.stem}.json").read_text())
        assert (found.panoptic is not None) == ("segments" in record) == segmenter.module.predicts_masks
        if found.panoptic is not None:
            with Image.open(run / "predictions" / f"{photo.stem}.panoptic.png") as file:
                ids = np.asarray(file)
            assert np.array_equal(ids, found.panoptic.segment_ids.numpy())
            assert [each["area"] for each in record["segments"]] == [
                (ids == each["id"]).sum() for each in record["segments"]
            ]


def regions_of(run: Path) -> dict[str, str] | None:
    """Where the region maps of a method come from that goes by them."""
    content = yaml.safe_load((run / "config.test.yaml").read_text())
    regions: dict[str, str] | None = content["data"]["init_args"]["regions"]
    return regions


def model_only(run: Path) -> Path:
    path = run / "model.yaml"
    path.write_text(yaml.safe_dump({"model": yaml.safe_load((run / "config.test.yaml").read_text())["model"]}))
    return path


@pytest.mark.slow
def test_an_exported_file_agrees_with_test(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    config = next(file for name in ("config.yaml", "config.test.yaml") if (file := run / name).is_file())
    path = run / "method.onnx"
    command = ["export", str(path), "-c", str(config), "--vocabulary", "toy", "--size", "128"]
    reason = next((why for method, why in NOT_EXPORTED.items() if run.parent.name.rstrip("0123456789") == method), None)
    if reason is not None:
        assert main(command) == 2
        assert reason in capsys.readouterr().err
        assert not path.exists()
        return
    assert main(command) == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for photo, expected in zip(photos(run), labels_of_test(run), strict=True):
        image = np.asarray(Image.open(photo)).transpose(2, 0, 1)[None]
        (found,) = session.run(None, {"image": image})
        assert (found[0] != expected).mean() < 1e-3  # scores that tie to the last bits may fall to either class


def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "ovsl",
        "test",
        "-c",
        "configs/methods/maskclip.yaml",
        "-c",
        "configs/data/toy.yaml",
    ]
    command += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar=false", "--pictures.count", "0"]
    command += ["--diagnosis", "true"]
    few = tmp_path / "few.yaml"
    toy = {"class_path": "ovsl.data.ToySource", "init_args": {"seed": 2, "length": 5}}
    few.write_text(yaml.safe_dump({"data": {"init_args": {"num_workers": 0, "evaluation": {"toy": {"test": toy}}}}}))
    command += ["-c", str(few)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder, processes in ((one, "1"), (two, "2")):
        strategy = ["--trainer.strategy", "ddp"] if processes == "2" else []
        more = ["--trainer.devices", processes, *strategy, "--run_dir", str(folder)]
        subprocess.run([*command, *more], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    first, second = (json.loads((folder / "results/test-toy.json").read_text()) for folder in (one, two))
    for result in (first, second):
        del result["created"], result["run"]
    assert first == second
    assert first["images"] == 5
    assert first["intervals"].keys() == {name for name, value in first["metrics"].items() if value is not None}
    alone, together = (ImageCounts.read(folder / "results/test-toy.images.npz") for folder in (one, two))
    assert together.images.tolist() == alone.images.tolist() == [f"toy-2-{index:06d}" for index in range(5)]
    for name in alone.columns:
        np.testing.assert_array_equal(together.dense(name), alone.dense(name))
    counts = [DiagnosisCounts.read(folder / "results/test-toy.diagnosis.npz") for folder in (one, two)]
    tables = [Confusion.read(folder / "results/test-toy.confusion.npz").dense() for folder in (one, two)]
    np.testing.assert_array_equal(*tables)
    for name in ("boundary", "true_masks", "margins"):
        np.testing.assert_array_equal(*(getattr(each, name) for each in counts), err_msg=name)
    totals = [alone.dense(name).sum() for name in ("intersection", "target_area")]
    assert totals[0] / totals[1] == first["metrics"]["pAcc"]
