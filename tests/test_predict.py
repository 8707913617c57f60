"""`ovsl predict` as its users meet it: own words, own photos, folders used twice, a CLIP that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ovsl.__main__ import main
from tests.conftest import TINY_CLIP


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo and a tiny MaskCLIP, which is the current one."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    model = {"class_path": "MaskCLIP", "init_args": {"clip": {"model": "tiny", "config": TINY_CLIP}}}
    Path("method.yaml").write_text(yaml.safe_dump({"model": model, "seed_everything": 3}))
    return tmp_path


def predict(words: list[str] | str, *more: str, run: str = "run") -> int:
    command = ["predict", "-c", "method.yaml", "--model.templates", "single", "--trainer.accelerator", "cpu"]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--run_dir", run]
    given = words if isinstance(words, str) else json.dumps(words)
    return main([*command, "--data.images", "photo.png", "--data.vocabulary", given, *more])


def labels(run: str = "run") -> np.ndarray:
    return np.asarray(Image.open(Path(run) / "predictions/photo.labels.png"))


def test_synonyms_count_unless_the_settings_say_otherwise(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several, one = ["road, sky, tree, person, dog", "car"], ["road", "car"]
    assert predict(one, run="one") == 0
    assert "Only the first name" not in capsys.readouterr().out
    assert predict(several, run="several") == 0
    assert predict(several, "--model.synonyms", "first", run="first") == 0
    assert "--model.synonyms max lets all" in capsys.readouterr().out
    assert np.array_equal(labels("first"), labels("one"))
    assert not np.array_equal(labels("several"), labels("one"))


def test_words_may_come_from_a_file(here: Path) -> None:
    Path("street.csv").write_text("name,synonyms,color\nroad,,#010203\ncar,automobile,#0a0b0c\n")
    assert predict("street.csv") == 0
    assert json.loads(Path("run/predictions/classes.json").read_text()) == ["road", "car"]


def test_a_folder_holds_the_predictions_of_one_list_of_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(["road", "sky"]) == 0
    before = {path: path.read_bytes() for path in Path("run/predictions").iterdir()}
    assert predict(["sky", "road"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds label maps of other classes (road, sky); choose another --run_dir" in error
    assert {path: path.read_bytes() for path in Path("run/predictions").iterdir()} == before
    assert predict(["road", "sky"]) == 0, "the same words again are no other ones"


def test_a_random_clip_shows_in_everything_that_it_answers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(["road", "sky"]) == 0
    assert "MaskCLIP (random CLIP), 2 classes" in (out := capsys.readouterr().out)
    assert "knows no word" in out
    assert json.loads(Path("run/predictions/photo.json").read_text())["method"] == "MaskCLIP (random CLIP)"


def test_sizes_are_said_and_the_users_own_win(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(["road", "sky"]) == 0
    assert "a short side of at most 512 and a long side of at most 2048 pixels" in capsys.readouterr().out
    assert predict(["road", "sky"], "--data.evaluation_transform.short_side", "48") == 0
    assert "a short side of 48 pixels" in capsys.readouterr().out
    assert labels().shape == (90, 120)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000)])
def test_photos_smaller_than_a_patch_are_labelled(size: tuple[int, int], here: Path) -> None:
    Image.new("RGB", size[::-1], "red").save("photo.png")
    assert predict(["road", "sky"]) == 0
    assert labels().shape == size


def test_photos_of_one_name_do_not_overwrite_each_other(here: Path) -> None:
    rng = np.random.default_rng(1)
    for folder in ("a", "b", "c"):
        Path(folder).mkdir()
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(f"{folder}/same.png")
    words = ["road", "sky"]
    assert predict(words, "--data.images", '["a", "b"]') == 0
    first = {path.name: path.read_bytes() for path in Path("run/predictions").iterdir()}
    assert sum(name.endswith(".labels.png") for name in first) == 2, "two folders of one command"
    assert predict(words, "--data.images", "c") == 0
    second = {path.name: path.read_bytes() for path in Path("run/predictions").iterdir()}
    assert second.items() >= first.items(), "those of another command stay"
    assert json.loads(second["same-2.json"])["photo"] == str((here / "c/same.png").resolve())
    assert predict(words, "--data.images", "c") == 0
    assert {path.name for path in Path("run/predictions").iterdir()} == set(second), (
        "the same photos again take their own"
    )
