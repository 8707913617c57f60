"""The Python API: a method with its words, asked about photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ovsl
from ovsl.__main__ import main
from ovsl.clip import CLIPSettings
from ovsl.errors import InputError
from ovsl.methods import MaskCLIP, SegmentationModule
from tests.conftest import ROOT, TINY_CLIP

MASKCLIP = {
    "model": {
        "class_path": "ovsl.methods.MaskCLIP",
        "init_args": {"clip": {"model": "tiny", "config": TINY_CLIP}, "templates": "single"},
    },
    "seed_everything": 3,
}
WORDS = ["road", "sky", "car, automobile"]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "maskclip.yaml"
    path.write_text(yaml.safe_dump(MASKCLIP))
    return path


def test_a_photo_may_be_a_file_an_image_an_array_or_a_tensor(config: Path, photo: np.ndarray, tmp_path: Path) -> None:
    segmenter = ovsl.load(config, device="cpu").with_words(WORDS)
    file = tmp_path / "photo.png"
    Image.fromarray(photo).save(file)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    found = segmenter([file, str(file), Image.fromarray(photo), photo, tensor])
    assert all(np.array_equal(found[0].labels, other.labels) for other in found[1:])
    one = segmenter(file)
    assert np.array_equal(one.labels, found[0].labels)
    assert one.labels.shape == (40, 60)
    assert one.panoptic is None
    shares = one.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for index, word in enumerate(("road", "sky", "car")):
        assert shares[word] == pytest.approx((one.labels == index).mean())
    assert one.overlay().size == (60, 40)


def test_other_words_need_no_other_loading(config: Path, photo: np.ndarray) -> None:
    method = ovsl.load(config, device="cpu")
    segmenter = method.with_words(WORDS)
    other = segmenter.with_words(["cat", "dog"])
    assert other.module is segmenter.module
    assert other(photo).labels.max() < 2
    swapped = segmenter.with_words(["sky", "road", "car, automobile"])(photo).labels
    assert np.array_equal(np.array([1, 0, 2])[swapped], segmenter(photo).labels)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.jpg", "no photo 'missing.jpg'"),
        (np.zeros((4, 4, 3), dtype=np.float32), "has to be uint8 RGB"),
        (torch.zeros(4, 4, 4, 3, dtype=torch.uint8), "has to be uint8 RGB"),
    ],
)
def test_what_is_no_photo_is_named(config: Path, given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ovsl.load(config, device="cpu").with_words(WORDS)(given)  # type: ignore[call-overload]


def test_nothing_to_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to load"):
        ovsl.load(tmp_path / "nothing")
    trained = tmp_path / "patch_text.yaml"
    settings = {**MASKCLIP["model"], "class_path": "ovsl.methods.PatchText"}  # type: ignore[dict-item]
    trained.write_text(yaml.safe_dump({"model": settings}))
    with pytest.raises(InputError, match="Which weights"):
        ovsl.load(trained)


def test_lightnings_way_to_load_is_refused(tmp_path: Path) -> None:
    for loads in (MaskCLIP, SegmentationModule, MaskCLIP(clip=CLIPSettings("tiny", config=TINY_CLIP))):
        with pytest.raises(InputError, match=r"ovsl\.load\('.*last\.ckpt'\)"):
            loads.load_from_checkpoint(tmp_path / "last.ckpt")


def test_a_run_directory_and_its_checkpoint_answer_as_predict_does(tmp_path: Path, photo: np.ndarray) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(
        yaml.safe_dump(
            {
                "trainer": {"max_steps": 1, "limit_val_batches": 0, "enable_progress_bar": False},
                "data": {"init_args": {"batch_size": 2, "num_workers": 0}},
            }
        )
    )
    run = tmp_path / "run"
    files = ("configs/methods/patch_text.yaml", "configs/data/toy.yaml", "configs/trainer/cpu.yaml")
    configs = [argument for file in (*(str(ROOT / name) for name in files), str(small)) for argument in ("-c", file)]
    assert main(["fit", *configs, "--run_dir", str(run)]) == 0
    Image.fromarray(photo).save(tmp_path / "photo.png")
    vocabulary = '["red circle", "yellow star"]'
    predict = ["predict", "--run_dir", str(run), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar=false"]
    assert main([*predict, "--data.images", str(tmp_path / "photo.png"), "--data.vocabulary", vocabulary]) == 0
    with Image.open(run / "predictions/photo.labels.png") as file:
        predicted = np.asarray(file)
    words = ["red circle", "yellow star"]
    for source in (run, run / "checkpoints/last.ckpt"):
        assert np.array_equal(ovsl.load(source, device="cpu").with_words(words)(photo).labels, predicted)
