"""Files of strangers, and data that is not what it was."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from ovsl.__main__ import main
from ovsl.data import ParquetSource
from ovsl.data.sources import LARGEST_IMAGE, UndecodableImageError, decode_image
from ovsl.errors import InputError
from ovsl.runs.directory import RunDirectory
from ovsl.runs.trust import check_settings
from tests.conftest import ROOT
from tests.runs.test_resume import fit, weights


def encoded(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, rows: int = 16, ids: list[str] | None = None, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    table = {
        "image": [encoded(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(rows)],
        "mask": [encoded(np.full((40, 40), 1, np.uint8)) for _ in range(rows)],
        "id": ids or [f"{index}" for index in range(rows)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def from_parquet(path: Path) -> list[str]:
    return ["--data.train.class_path", "ovsl.data.ParquetSource", "--data.train.files", str(path)]


@pytest.mark.parametrize("change", ["pixels", "rows"])
def test_a_run_does_not_go_on_with_other_data(
    change: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", shard(tmp_path / "rows.parquet")
    assert fit(small, run, *from_parquet(data), "--trainer.max_steps", "1") == 0
    assert json.loads((run / "run.json").read_text())["data"]["rows"] == 16
    shard(data, rows=20 if change == "rows" else 16, seed=1)
    assert fit(small, run, *from_parquet(data), "--trainer.max_steps", "2") == 2
    assert "is not the data that the run" in capsys.readouterr().err
    assert fit(small, run, *from_parquet(data), "--trainer.max_steps", "2", "--accept_other_data", "true") == 0
    assert weights(run / "checkpoints/last.ckpt")["global_step"] == 2


def test_a_repository_is_read_at_the_commit_of_the_first_start(tmp_path: Path) -> None:
    class Moving:
        name, commit = "Hub dataset", "new"

        def pin(self, fingerprint: Any) -> None:
            self.commit = fingerprint["commit"]

        def fingerprint(self) -> dict[str, Any]:
            return {"rows": 1 if self.commit == "old" else 2, "commit": self.commit}

    directory, source = RunDirectory(tmp_path), Moving()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-1.ckpt").write_bytes(b"")
    record = {"identity": {}, "starts": [{"ovsl": "0"}], "data": {"rows": 1, "commit": "old"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    directory.check_same_data(source)
    assert source.commit == "old"


def test_equal_files_have_equal_fingerprints(tmp_path: Path) -> None:
    one, two, other = (shard(tmp_path / f"{n}/rows.parquet", seed=seed) for n, seed in ((0, 0), (1, 0), (2, 1)))
    found = [ParquetSource(str(path)).fingerprint() for path in (one, two, other)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("id", ["../../outside", "/absolute", "a/../../../outside"])
def test_predictions_stay_in_their_folder(
    id: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shard(tmp_path / "rows.parquet", rows=1, ids=[id.replace("/absolute", str(tmp_path / "absolute"))])
    source = {"class_path": "ovsl.data.ParquetSource", "init_args": {"files": str(data), "id_column": "id"}}
    settings = yaml.safe_load(small.read_text())
    evaluation = {"toy": {"vocabulary": "toy", "test": source}}
    settings["data"] = {"class_path": "SegmentationDataModule", "init_args": {"evaluation": evaluation}}
    settings["data"]["init_args"]["num_workers"] = 0
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    run = tmp_path / "runs/one/run"
    before = {path for path in tmp_path.rglob("*") if run not in path.parents}
    assert main(["predict", "--model", "MaskCLIP", "-c", str(file), "--run_dir", str(run)]) == 2
    assert "id" in capsys.readouterr().err
    assert {path for path in tmp_path.rglob("*") if run not in path.parents} - before <= {run, *run.parents}
    assert isinstance(json.loads((run / "predictions/classes.json").read_text()), list)


def test_a_picture_called_classes_does_not_take_the_place_of_the_names(small: Path, tmp_path: Path) -> None:
    for name in ("classes", "classes_"):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    settings = tmp_path / "clip.yaml"
    settings.write_text(yaml.safe_dump({"model": yaml.safe_load(small.read_text())["model"]}))
    command = ["predict", "--model", "MaskCLIP", "-c", str(settings), "--run_dir", str(tmp_path / "run")]
    words = ["--data.images", str(tmp_path), "--data.vocabulary", '["road", "sky"]']
    assert main([*command, *words, "--trainer.accelerator", "cpu"]) == 0
    folder = tmp_path / "run/predictions"
    assert json.loads((folder / "classes.json").read_text()) == ["road", "sky"]
    found = {file.name for file in folder.glob("*.labels.png")}
    assert found == {"classes_.labels.png", "classes__.labels.png"}


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (1 << 14, (1 << 13) + 1)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 50_000 < LARGEST_IMAGE
    with pytest.raises(UndecodableImageError, match="are more than"):
        decode_image(buffer.getvalue(), "image")


def settings_with(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "ovsl.methods.PatchText", "init_args": arguments}


@pytest.mark.parametrize(
    "settings",
    [
        {"class_path": "antigravity.Model", "init_args": {}},
        settings_with(optimizer={"class_path": "antigravity.fly"}),
        settings_with(optimizer="antigravity.fly"),
        settings_with(inference_for={"toy": {"class_path": "antigravity.Inference"}}),
    ],
)
def test_settings_of_a_checkpoint_name_nothing_foreign(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="antigravity"):
        check_settings(settings)


def test_settings_of_a_checkpoint_may_name_ours_and_files(tmp_path: Path) -> None:
    clip = {"model": "tiny", "pretrained": "weights.pt"}
    inference = {"class_path": "ovsl.inference.WholeImage"}
    check_settings(settings_with(clip=clip, optimizer={"class_path": "torch.optim.AdamW"}, inference=inference))
    check_settings(settings_with(templates="single_dot", initial_checkpoint="other.ckpt", synonyms="first"))


def test_a_checkpoint_imports_nothing(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert fit(small, run, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0") == 0
    checkpoint = weights(run / "checkpoints/last.ckpt")
    checkpoint["ovsl"]["settings"]["init_args"]["optimizer"] = {"class_path": "antigravity.fly", "init_args": {}}
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    assert main(["test", "-c", str(ROOT / "configs/data/toy.yaml"), "--ckpt_path", str(tmp_path / "foreign.ckpt")]) == 2
    assert "antigravity.fly" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("record", ["text", {"method": "m"}, {"method": "m", "settings": "text", "clip": []}])
def test_odd_records_are_refused_in_one_sentence(
    record: Any, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"ovsl": record, "state_dict": {}, "global_step": 0}, tmp_path / "odd.ckpt")
    assert main(["test", "-c", str(small), "--ckpt_path", str(tmp_path / "odd.ckpt")]) == 2
    assert "is not one that ovsl wrote" in capsys.readouterr().err


def test_a_test_of_nothing_is_no_result(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"image": [b"broken"] * 2, "mask": [b"broken"] * 2})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = {"class_path": "ovsl.data.ParquetSource", "init_args": {"files": str(tmp_path / "rows.parquet")}}
    settings = yaml.safe_load(small.read_text())
    evaluation = {"toy": {"vocabulary": "toy", "test": source}}
    settings["data"] = {"class_path": "SegmentationDataModule", "init_args": {"evaluation": evaluation}}
    settings["data"]["init_args"] |= {"num_workers": 0, "on_error": "skip"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    command = ["test", "--model", "MaskCLIP", "-c", str(tmp_path / "settings.yaml"), "--run_dir", str(run)]
    assert main(command) == 2
    assert "Not one image of 'toy' was evaluated" in capsys.readouterr().err
    assert not list(run.glob("results/*"))


def test_an_image_smaller_than_a_patch_is_one_sentence(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (3, 50)).save(tmp_path / "slim.png")
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump({"model": yaml.safe_load(small.read_text())["model"]}))
    command = ["predict", "--model", "MaskCLIP", "-c", str(tmp_path / "clip.yaml"), "--run_dir", str(tmp_path / "run")]
    # Photos are enlarged to the method's own size unless another one is asked for.
    command += ["--data.evaluation_transform.short_side", "3"]
    assert main([*command, "--data.images", str(tmp_path / "slim.png"), "--data.vocabulary", '["road", "sky"]']) == 2
    assert "3x50 pixels is smaller than one patch" in capsys.readouterr().err
    many = tmp_path / "photos"
    many.mkdir()
    for name, size in (("slim", (3, 50)), ("wide", (64, 50))):
        Image.new("RGB", size).save(many / f"{name}.png")
    skip = ["--data.images", str(many), "--data.vocabulary", '["road", "sky"]', "--data.on_error", "skip"]
    command[command.index("3")] = "null"  # photos as they are
    command[command.index("--run_dir") + 1] = str(tmp_path / "many")
    assert main([*command, *skip]) == 0
    assert {file.name for file in (tmp_path / "many/predictions").glob("*.json")} == {"classes.json", "wide.json"}
