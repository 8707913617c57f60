"""The command as a user types it, on a tiny CLIP with random weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ovsl.methods
from ovsl.__main__ import main
from ovsl.command_line import method_asked_about
from ovsl.errors import InputError
from ovsl.methods import SegmentationModule
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT
from tests.waits import Waits

DATA = str(ROOT / "configs/data/toy.yaml")
BASELINE = str(ROOT / "configs/methods/patch_text.yaml")


def _fit(small: Path, run: Path, *more: str) -> int:
    return main(["fit", "-c", BASELINE, "-c", DATA, "-c", str(small), "--run_dir", str(run), *more])


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert _fit(small, run) == 0
    return run


def _checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_fit_leaves_a_run_that_tells_what_ran(trained):
    record = json.loads((trained / "run.json").read_text())
    assert record["identity"]["model.temperature"] == 20.0
    assert yaml.safe_load((trained / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    checkpoint = _checkpoint(trained)
    assert checkpoint["global_step"] == 4
    assert not any("model.transformer" in key for key in checkpoint["state_dict"]), "the text tower is frozen"
    events = EventAccumulator(str(trained))
    events.Reload()
    tags = events.Tags()
    wanted = {
        "train/loss",
        "train/learning_rate",
        *(f"val/toy/{m}" for m in ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU")),
    }
    assert wanted <= set(tags["scalars"])
    assert "val/toy/pictures" in tags["images"]


def test_losses_are_read_off_the_device_when_they_are_logged(small, tmp_path, monkeypatch):
    plain, waiting = SegmentationModule.training_step, []

    def step(self, batch, batch_index):
        with Waits() as waits:
            loss = plain(self, batch, batch_index)
        waiting.append(any("methods/base.py" in place for place in waits.places))
        return loss

    monkeypatch.setattr(SegmentationModule, "training_step", step)
    logged = {}
    for interval in (1, 3):
        waiting.clear()
        steps = ["--trainer.max_steps", "6", "--trainer.limit_val_batches", "0"]
        assert _fit(small, tmp_path / str(interval), *steps, "--trainer.log_every_n_steps", str(interval)) == 0
        events = EventAccumulator(str(tmp_path / str(interval)))
        events.Reload()
        logged[interval] = {event.step: event.value for event in events.Scalars("train/loss")}
    assert waiting == [True, False, True, False, True, True]  # the first of an epoch for the progress bar
    assert logged[3] == {step: logged[1][step] for step in (2, 5)}


def test_test_uses_the_checkpoint_of_its_run_and_report_finds_the_result(trained, small, capsys):
    # The model is not written here: the checkpoint fills it in.
    assert main(["test", "-c", DATA, "-c", str(_without_model(small)), "--run_dir", str(trained)]) == 0
    result = json.loads((trained / "results/test-toy.json").read_text())
    assert (result["method"], result["images"], result["step"]) == ("PatchText (random CLIP)", 10, 4)
    assert (trained / "pictures/test-toy.png").is_file()
    capsys.readouterr()
    chart = trained / "chart.png"
    assert main(["report", str(trained), "--stage", "test", "--format", "csv", "--chart", str(chart)]) == 0
    header, row = capsys.readouterr().out.splitlines()[:2]
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(cells["mIoU"]) == pytest.approx(100 * result["metrics"]["mIoU"], abs=0.1)
    assert Image.open(chart).width > 300


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_tools_take_the_configuration_of_a_run(stage, trained, small, capsys):
    config = trained / "config.yaml"
    if stage != "fit":
        assert main(["validate", "-c", str(config), "--data.evaluation_batch_size", "2"]) == 0
        config = trained / "config.validate.yaml"
    assert main(["profile", "-c", str(config), "--size", "32", "--repeats", "1", "--device", "cpu"]) == 0
    assert "multiply-adds" in capsys.readouterr().out


def test_a_run_is_exported(trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", str(tmp_path / "run.onnx"), "-c", str(trained / "config.yaml"), "--size", "32"]) == 0
    assert "40 classes, 32x32" in capsys.readouterr().out


def _without_model(small: Path) -> Path:
    content = yaml.safe_load(small.read_text())
    del content["model"]
    path = small.with_name("small_without_model.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def test_what_the_user_writes_wins_over_the_checkpoint(trained, small):
    settings = _without_model(small)
    command = ["validate", "-c", DATA, "-c", str(settings), "--run_dir", str(trained), "--model.temperature", "33"]
    assert main(command) == 0
    model = yaml.safe_load((trained / "config.validate.yaml").read_text())["model"]["init_args"]
    assert model["temperature"] == 33
    assert model["templates"] == "single_dot", "what the user did not write comes from the checkpoint"
    assert model["clip"]["model"] == "tiny"


def test_resumed_run_ends_with_the_same_weights(trained, small, tmp_path, capsys):
    # The schedule spans the whole run, so the first start stops by a limit that is not part of it.
    run = tmp_path / "resumed"
    command = ["fit", "-c", BASELINE, "-c", DATA, "-c", str(small), "--run_dir", str(run)]
    command += ["--checkpoint.every_n_train_steps", "1", "--trainer.callbacks+=tests.faults.SlowSteps"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "ovsl", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = run / "checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 1 <= reached < 4
    assert _fit(small, run) == 0
    assert f"from step {reached}" in capsys.readouterr().out
    expected, found = _checkpoint(trained), _checkpoint(run)
    assert found["global_step"] == 4
    assert all(torch.equal(value, found["state_dict"][key]) for key, value in expected["state_dict"].items())
    assert len(json.loads((run / "run.json").read_text())["starts"]) == 2


def test_finished_run_is_not_trained_again(trained, small, capsys):
    before = (trained / "checkpoints/last.ckpt").read_bytes()
    assert _fit(small, trained) == 0
    assert "is complete: 4 of 4 steps" in capsys.readouterr().out
    assert (trained / "checkpoints/last.ckpt").read_bytes() == before


def test_run_directory_of_another_run_is_left_alone(trained, small, capsys):
    before = _contents(trained)
    assert _fit(small, trained, "--model.temperature", "5") == 2
    assert "model.temperature was 20.0 and is 5.0 now" in capsys.readouterr().err
    assert _contents(trained) == before


def test_a_run_on_words_of_ones_own_goes_on_only_with_them(small, tmp_path, capsys):
    file, run = tmp_path / "mine.csv", tmp_path / "run"
    toy = Vocabulary.load("toy")
    words = ["name,is_thing", *(f"{name},{thing}" for name, thing in zip(toy.classes, toy.things, strict=True))]
    file.write_text("\n".join(words))
    more = ["--data.vocabulary", str(file), "--data.split", "null", "--trainer.max_steps"]
    assert _fit(small, run, *more, "1") == 0
    file.write_text("\n".join([*words[:-1], "something else,false"]))
    assert _fit(small, run, *more, "2") == 2
    assert "give back the vocabulary of the run" in capsys.readouterr().err
    file.write_text("\n".join(words))
    assert _fit(small, run, *more, "2") == 0
    assert _checkpoint(run)["ovsl"]["training_vocabulary"]["name"] == "mine"


def test_a_random_clip_of_another_seed_is_refused_with_the_cause(trained, small, tmp_path, capsys):
    command = ["validate", "-c", BASELINE, "-c", DATA, "-c", str(small), "--run_dir", str(tmp_path / "run")]
    checkpoint = ["--ckpt_path", str(trained / "checkpoints/last.ckpt")]
    assert main([*command, *checkpoint, "--seed_everything", "1"]) == 2
    assert "random CLIP 'tiny' of another seed" in capsys.readouterr().err


def test_run_that_never_got_to_a_checkpoint_does_not_block_its_folder(small, tmp_path):
    run = tmp_path / "run"
    assert _fit(small, run, "--data.train.class_path", "ovsl.data.ParquetSource", "--data.train.files", "missing") == 2
    assert _fit(small, run, "--trainer.max_steps", "1") == 0
    assert json.loads((run / "run.json").read_text())["identity"]["data.train.class_path"] == "ovsl.data.ToySource"


def test_checkpoint_of_another_method_is_refused(trained, small, tmp_path, capsys):
    command = ["test", "--model", "MaskCLIP", "-c", DATA, "-c", str(small), "--run_dir", str(tmp_path / "run")]
    assert main([*command, "--ckpt_path", str(trained / "checkpoints/last.ckpt")]) == 2
    assert "holds PatchText, but the configuration asks for MaskCLIP" in capsys.readouterr().err


def test_trained_method_without_checkpoint_is_refused(small, tmp_path, capsys):
    assert main(["test", "-c", BASELINE, "-c", DATA, "-c", str(small), "--run_dir", str(tmp_path / "new")]) == 2
    assert "give --ckpt_path" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_checkpoint_that_runs_code_is_refused(small, tmp_path, capsys):
    class Malicious:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    path = tmp_path / "bad.ckpt"
    torch.save({"ovsl": Malicious(), "state_dict": {}, "global_step": 0}, path)
    assert main(["test", "-c", DATA, "-c", str(small), "--ckpt_path", str(path), "--run_dir", str(tmp_path / "r")]) == 2
    assert "is not a checkpoint that can be loaded safely" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_predict_labels_photos_with_any_words(small, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("one.jpg", (40, 60)), ("two.v2.png", (50, 30))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photos / name)
    settings = tmp_path / "clip.yaml"
    settings.write_text(yaml.safe_dump({"model": yaml.safe_load(small.read_text())["model"]}))
    command = ["predict", "--model", "MaskCLIP", "-c", str(settings), "--run_dir", str(tmp_path / "run")]
    command += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert (
        main([*command, "--data.images", str(photos), "--data.vocabulary", '["road", "sky", "car, automobile"]']) == 0
    )
    folder = tmp_path / "run/predictions"
    assert json.loads((folder / "classes.json").read_text()) == ["road", "sky", "car"]
    for name, size in (("one", (40, 60)), ("two.v2", (50, 30))):
        with Image.open(folder / f"{name}.labels.png") as file:
            assert file.mode in ("I;16", "I")  # by the version of Pillow
            labels = np.asarray(file)
        assert labels.shape == size
        assert labels.max() < 3
        shares = json.loads((folder / f"{name}.json").read_text())["share"]
        assert shares == pytest.approx(
            {c: (labels == i).mean() for i, c in enumerate(["road", "sky", "car"])}, abs=1e-6
        )
        assert Image.open(folder / f"{name}.overlay.png").mode == "RGB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.images", "photo.jpg", "--data.vocabulary", "[]"], "vocabulary is empty"),
        (["--data.images", "missing.jpg", "--data.vocabulary", '["road"]'], "missing.jpg"),
        (["--data.images", "photo.jpg", "--data.vocabulary", "camvid_12"], "camvid_11"),
        (["--data.images", "photo.jpg", "--data.vocabulary", '["road"]', "--model.templates", "imagenet"], "imagenet"),
        (["--data.images", "broken.jpg", "--data.vocabulary", '["road"]'], "broken"),
    ],
)
def test_bad_input_ends_in_one_sentence(arguments, message, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("photo.jpg")
    Path("broken.jpg").write_bytes(b"not an image")
    Path("clip.yaml").write_text(yaml.safe_dump({"model": yaml.safe_load(small.read_text())["model"]}))
    command = ["predict", "--model", "MaskCLIP", "-c", "clip.yaml", "--trainer.accelerator", "cpu"]
    assert main([*command, "--run_dir", "run", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ovsl: ")
    assert message in error


def test_training_free_method_cannot_be_fitted(small, tmp_path, capsys):
    command = ["fit", "--model", "MaskCLIP", "-c", DATA, "-c", str(small), "--run_dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "MaskCLIP has nothing to train" in capsys.readouterr().err


def test_a_run_directory_in_a_file_counts_as_one_on_the_command_line(trained, small, tmp_path):
    named = tmp_path / "run.yaml"
    named.write_text(yaml.safe_dump({"run_dir": str(trained)}))
    assert main(["validate", "-c", DATA, "-c", str(_without_model(small)), "-c", str(named)]) == 0


def test_a_bug_met_while_an_input_error_is_handled_is_not_hidden_by_it(monkeypatch):
    def broken(arguments):
        try:
            raise InputError("a mistake of the user")
        except InputError:
            raise KeyError("a bug of ours")  # noqa: B904 - what is tested

    monkeypatch.setattr("ovsl.tools.report.main", broken)
    with pytest.raises(KeyError, match="a bug of ours"):
        main(["report"])


def test_sections_of_a_run_that_a_tool_does_not_know_are_no_mistake(trained, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text((trained / "config.yaml").read_text() + "\nanother_callback: {every: 3}\n")
    assert main(["profile", "-c", str(config), "--size", "32", "--repeats", "1", "--device", "cpu"]) == 0


def test_a_test_with_a_diagnosis_has_the_same_scores_and_a_page(small, tmp_path):
    command = ["test", "-c", "configs/methods/maskclip.yaml", "-c", DATA, "-c", str(_without_model(small))]
    command += ["--model.templates", "single_dot", "--trainer.limit_test_batches", "3", "--pictures.count", "0"]
    for name in ("plain", "diagnosed"):
        more = ["--diagnosis", "true"] if name == "diagnosed" else []
        assert main([*command, *more, "--run_dir", str(tmp_path / name)]) == 0
    plain, diagnosed = (
        json.loads((tmp_path / name / "results/test-toy.json").read_text()) for name in ("plain", "diagnosed")
    )
    assert plain["metrics"] == diagnosed["metrics"]
    assert plain["intervals"] == diagnosed["intervals"]
    assert plain["intervals"].keys() == {name for name, value in plain["metrics"].items() if value is not None}
    files = {name: {file.name for file in (tmp_path / name / "results").iterdir()} for name in ("plain", "diagnosed")}
    assert files["plain"] == {"test-toy.json", "test-toy.images.npz", "test-toy.confusion.npz"}
    assert files["diagnosed"] == files["plain"] | {"test-toy.diagnosis.npz"}
    assert main(["report", "--diagnosis", str(tmp_path / "diagnosed")]) == 0
    (told,) = json.loads((tmp_path / "diagnosed/diagnosis/diagnosis.json").read_text())
    measured = told["scores"]["measured"]
    assert measured == {name: pytest.approx(plain["metrics"][name], abs=1e-12) for name in measured}
    assert told["offsets"]["now"]["hIoU"] == pytest.approx(measured["hIoU"], abs=1e-12)
    assert told["scores"]["true_masks"]["mIoU"] > measured["mIoU"]
    assert main(["report", "--compare", str(tmp_path / "plain"), str(tmp_path / "diagnosed")]) == 0


@pytest.mark.parametrize("name", sorted({*ovsl.methods.__all__} - {"SegmentationModule"}))
def test_help_on_a_method_names_its_paper(name: str) -> None:
    description = method_asked_about(["--model.help", name])
    assert description is not None
    assert re.search(r"(arxiv\.org/abs/|arXiv )\d{4}\.\d{5}", description)
    assert "Args:" not in description


def test_help_on_a_method_begins_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "PatchText"])
    printed = capsys.readouterr().out
    assert printed.startswith("Cosine similarity of patch tokens")
    assert printed.index("https://arxiv.org/abs/2212.03588") < printed.index("--model.temperature")
