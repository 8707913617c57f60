"""The commands and the Python of the README and of the pages of the docs do what they say, one after another."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ovsl.__main__ import VERBS, main
from ovsl.data.catalogue import catalogue
from ovsl.tools.report import collect
from tests.conftest import ROOT
from tests.data.shards import write_shard
from tests.prepare.trees import ade20k_150
from tests.test_configs import row

README = ROOT / "README.md"
PAGES = [
    README,
    *(ROOT / f"docs/{name}.md" for name in ("index", "cluster", "datasets", "diagnosis", "suites")),
    *sorted((ROOT / "docs/how_to").glob("*.md")),
]
FIT = ["fit", "-c", "ovsl:methods/patch_text", "-c", "ovsl:data/toy", "-c", "ovsl:trainer/cpu"]
MASKCLIP = ["test", "-c", "ovsl:methods/maskclip", "-c", "ovsl:data/toy", "--diagnosis", "true"]
QUICK = shlex.split(
    "--data.batch_size 2 --data.num_workers 0 --trainer.accelerator cpu --trainer.enable_progress_bar false "
    "--trainer.max_steps 1 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1"
)
ELSEWHERE = ("ViT-B-16", "zegclip/voc", "zegclip.ckpt", "coco_inductive", "study_ade20k", "toy/study", "san.ckpt")
"""What a command needs that is not here - released weights, data, a cluster, hours: it is read and not run."""


def blocks(page: Path, *kinds: str) -> list[str]:
    """The code blocks of some languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind in kinds]


def commands(page: Path) -> list[list[str]]:
    """Every `ovsl` line of a code block, all its optional parts given, the first of each choice taken."""
    lines = [line for text in blocks(page, "") for line in text.replace("\\\n", " ").splitlines()]
    found = [line.removeprefix("PYTHONPATH=. ") for line in lines]
    plain = [re.sub(r"\|\w+", "", re.sub(r"[\[\]](?![^']*')", "", line)) for line in found if line.startswith("ovsl ")]
    return [shlex.split(line, comments=True)[1:] for line in plain]


PHOTOS = [command for command in commands(README) if {"ovsl:data/folder", "runs/photos/config.yaml"} & {*command}]
"""From a folder of photos to a model."""


def words_and_files(page: Path) -> None:
    """Make what the commands of a page speak of, in the current folder: photos, words, data, a run to compare."""
    for folder in ("configs", "experiments"):
        Path(folder).symlink_to(ROOT / folder)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photos/a.jpg", "images/a.jpg", "images/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(name)
    for name in ("a", "b"):
        Path("masks").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0] % 3).save(f"masks/{name}.png")
    Path("classes.txt").write_text("road\nsky\ncar, automobile\n")
    ade20k_150(Path())
    for split in ("train", "validation", "test"):
        write_shard(Path(f"data/camvid/{split}.parquet"), [row(catalogue()["camvid"], number) for number in range(4)])
    for text in [text for kind in ("python", "yaml") for text in blocks(page, kind) if text.startswith("# ")]:
        Path(text.splitlines()[0].removeprefix("# ")).write_text(text)


def status(command: Sequence[str]) -> int | str | None:
    """Exit status of a command, in the smallest form that there is of it."""
    if any(part in word for word in command for part in ELSEWHERE):
        if command[0] in VERBS:
            weights = command.index("--ckpt_path") if "--ckpt_path" in command else len(command)
            command = [*command[:weights], *command[weights + 2 :], "--print_config"]
        elif command[0] == "convert":
            return 0 if main(command) == 2 else 1  # it has no file
        elif command[0] == "profile":
            command = [*command, "--size", "32", "--classes", "3"]
        elif "--dry_run" not in command:
            command = [*command, "--dry_run"]
    elif command[0] == "demo":  # it would serve until it is stopped
        command = [*command, "--print_config"]
    elif command[0] in VERBS and "--model.help" not in command:
        command = [*command, *QUICK]
    try:
        return main(command)
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize(
    "page",
    # A suite is a process for each dataset.
    [pytest.param(page, marks=[pytest.mark.slow] * (page.stem == "suites"), id=page.stem) for page in PAGES],
)
def test_the_commands_of_a_page(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("OVSL_DATA", raising=False)
    monkeypatch.setattr("ovsl.tools.demo.serve", lambda *_: None)
    words_and_files(page)
    if page.stem == "own_data":
        exec(blocks(page, "python")[0])
    given = [command for command in commands(page) if command not in PHOTOS]
    # What a page compares or goes on with, and does not make itself.
    for run, makes in {"runs/mine": FIT, "runs/a": MASKCLIP, "runs/b": MASKCLIP}.items():
        spoken_of = any(run in word for command in given for word in command)
        if spoken_of and not any(run in command and command[0] == "fit" for command in given):
            assert status([*makes, "--run_dir", run]) == 0
    for command in given:
        capsys.readouterr()
        # What is suspicious of three pictures of noise is no mistake of the page.
        good = (0, 1) if command[:2] == ["data", "check"] else (0,)
        assert status(command) in good, f"ovsl {shlex.join(command)}\n{capsys.readouterr().err}"
    if page == README:
        assert Path("runs/mine/checkpoints/last.ckpt").is_file()


def test_a_folder_of_photos_becomes_a_trained_and_tested_model_in_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVSL_DATA", raising=False)
    for folder in ("images", "masks"):
        Path("photos", folder).mkdir(parents=True)
    draw, colors = np.random.default_rng(0), np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    for number in range(20):
        mask = np.kron(draw.integers(0, 3, (2, 2)), np.ones((48, 60), int)).astype(np.uint8)
        photo = colors[mask] + draw.integers(0, 20, (96, 120, 3), dtype=np.uint8)
        Image.fromarray(photo).save(f"photos/images/{number}.jpg", quality=95)
        Image.fromarray(mask).save(f"photos/masks/{number}.png")
    Path("photos/classes.txt").write_text("red wall\ngreen grass\nblue water\n")

    assert [command[0] for command in PHOTOS] == ["data", "fit", "test"]
    check, fit, test = PHOTOS
    assert main(check) == 0
    short = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--data.num_workers", "0"]
    assert main([*fit, *short, "--trainer.enable_progress_bar", "false"]) == 0
    assert main([*test, "--trainer.enable_progress_bar", "false"]) == 0
    assert sorted(path.name for path in Path("runs/data").iterdir()) == [
        "folder-photos-validation.png", "folder-train.png", "folder.json"
    ]  # fmt: skip
    (result,) = collect([Path("runs/photos")], "test")
    assert result.images == 4
    assert result.metrics["mIoU"] > 0.3, "any words, which no CLIP has read before"


def test_files_that_the_readme_links_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def wishes() -> list[str]:
    """Options in the tables of the how-to pages."""
    pages = (page for page in PAGES if page.parent.name == "how_to")
    cells = [cell for page in pages for cell in re.findall(r"^\|.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)]
    return [option for cell in cells for option in re.findall(r"`((?:--|-c )[^`]*)`", cell)]


@pytest.mark.parametrize("wish", wishes())
def test_the_options_in_tables_are_understood(wish: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*FIT, *shlex.split(wish), "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err


def test_a_released_clip_is_set_where_the_readme_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = README.read_text(encoding="utf-8")
    sentence = re.search(r"With a released CLIP, take\s+`([\w/.]+)` with\s+`(--model[^`]*)`", text)
    assert sentence is not None
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", sentence[1], "-c", "ovsl:data/camvid", *sentence[2].split(), "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "pretrained: openai" in printed
    assert "config: null" in printed, "a released CLIP with a configuration of one's own would be refused"


@pytest.mark.parametrize("page", [README, ROOT / "docs/how_to/own_words.md"], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    shutil.copy(ROOT / "configs/methods/maskclip.yaml", "runs/mine/config.yaml")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("photo.jpg")
    (program,) = blocks(page, "python")
    exec(program)
    assert Image.open("overlay.png").size == (60, 40)


def test_yaml_of_the_pages_is_yaml() -> None:
    for page in PAGES:
        for text in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(text), dict)
