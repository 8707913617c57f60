"""Every shipped YAML: methods run on the toy world; experiments are built small and run two batches."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import yaml
from pycocotools import mask as coco_mask

import ovsl.methods
from ovsl.__main__ import main
from ovsl.clip.toy import TOY_CLIPS
from ovsl.data.catalogue import CatalogueEntry, catalogue
from ovsl.results.tables import FIGURES
from ovsl.suites import Cell, Study
from ovsl.vocabulary import Vocabulary, load_templates
from tests.conftest import ROOT
from tests.data.shards import png, write_shard

METHODS = sorted((ROOT / "configs/methods").glob("*.yaml"))
NAMES = sorted(
    path.relative_to(ROOT / "experiments").as_posix()
    for path in (ROOT / "experiments").rglob("*.yaml")
    if not path.name.startswith(("study", "base"))  # lists of runs, see below, and what others build on
)
TOY = ["ovsl:data/toy", "ovsl:trainer/debug"]
QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

STACKED_ON = {
    "clip_lightweight/toy": TOY,
    "denseclip/multi_scale": ["ovsl:denseclip/rn50"],
    "fc_clip/test_all": ["ovsl:fc_clip/convnext_large_coco_panoptic"],
    "san/zero_shot": ["ovsl:san/vit_b_16"],
}
"""What an experiment that is no whole one is stacked on, by the beginning of its name."""

TESTED = (
    "clip_dinoiser/test", "clip_diy/", "denseclip/multi_scale", "fc_clip/test_all", "training_free/", "zegclip/coco_to_"
)  # fmt: skip
"""Experiments of `ovsl test`; all others train."""

PIXELS = (
    "crop_size",
    "stride",
    "short_side",
    "long_side",
    "max_size",
    "base_size",
    "input_resolution",
    "input_size",
    "image_size",
    "crop_sizes",
)
"""Settings in pixels, which are divided by eight."""

TWINS = (
    "cat_seg/vit_l_14",
    "denseclip/rn101",
    "lseg/ade20k_vit_l_16_rn",
    "lseg/ade20k_vit_b_32",
    "fc_clip/resnet",
    "fc_clip/test_all",
)
"""Costly ones whose network and data others have too."""

EXPERIMENTS = [pytest.param(name, marks=pytest.mark.slow) if name.startswith(TWINS) else name for name in NAMES]

SMALL_BACKBONES = {
    "resnet101.tv_in1k": "resnet18",
    "resnet50": "resnet18",
    "vit_base_patch32_384": "vit_small_patch32_384",
    "vit_large_patch16_384": "vit_tiny_patch16_384",
}


# What a method needs -------------------------------------------------------------------------------------------------


def test_folders_imports_configurations_and_readme_rows_are_the_same() -> None:
    methods = {name: getattr(ovsl.methods, name) for name in ovsl.methods.__all__ if name != "SegmentationModule"}
    folders = {method.__module__.split(".")[2]: name for name, method in methods.items()}
    assert len(folders) == len(methods)
    package = Path(ovsl.methods.__file__).parent
    assert set(folders) == {path.parent.name for path in package.glob("*/module.py")}
    configured = {path.stem: yaml.safe_load(path.read_text())["model"]["class_path"] for path in METHODS}
    assert {path.rsplit(".", 1)[1] for path in configured.values()} == set(methods)
    readme = (ROOT / "README.md").read_text()
    for folder, name in folders.items():
        # One class may stand for several methods, each with a configuration of its own.
        own = [folder] if folder in configured else [stem for stem, path in configured.items() if path.endswith(name)]
        for stem in own:
            assert configured[stem] == f"ovsl.methods.{name}"
            assert f"`configs/methods/{stem}.yaml`" in readme, f"README has no row of {stem}"


@pytest.mark.parametrize("config", METHODS, ids=lambda path: path.stem)
def test_method_runs_on_the_toy_world(config: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({"data": {"init_args": {"batch_size": 2, "num_workers": 0}}}))
    command = [*configs(str(config), *TOY, str(small)), *QUICK, "--run_dir", str(tmp_path / "run")]
    method = method_class(yaml.safe_load(config.read_text())["model"]["class_path"])
    assert main(["fit" if method.trainable else "test", *command]) == 0
    assert not (tmp_path / "run").exists(), "a debug run writes nothing"


# Experiments ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the files of a dataset in the catalogue's layout, once, and returns the folder of all data."""
    folder = tmp_path_factory.mktemp("data")

    def make(name: str) -> Path:
        known = catalogue()[name]
        if known.files is not None and not (folder / known.files).exists():
            for split in {*known.splits.values()}:
                write_shard(folder / known.files / f"{split}.parquet", [row(known, number) for number in range(4)])
        return folder

    return make


@pytest.mark.parametrize("name", EXPERIMENTS, ids=lambda name: name.removesuffix(".yaml"))
def test_experiment_is_built_and_runs_two_batches(
    name: str,
    generated: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verb = "test" if name.startswith(TESTED) else "fit"
    below = next((below for start, below in STACKED_ON.items() if name.startswith(start)), [])
    with pytest.raises(SystemExit) as ended:
        main([verb, *configs(*below, str(ROOT / "experiments" / name)), "--print_config"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    whole = yaml.safe_load(printed.out)
    data = whole["data"]["init_args"]
    for dataset, settings in data["evaluation"].items():
        assert dataset in catalogue()
        assert set(settings["published"] or {}) <= set(FIGURES)
    trained_on = data["train"].split("/")[0] if isinstance(data["train"], str) else None
    for dataset in {*data["evaluation"], *filter(None, [trained_on])}:
        monkeypatch.setenv("OVSL_DATA", str(generated(dataset)))
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(shrunk(whole)))
    capsys.readouterr()
    # A trained method is tested with the weights that it starts from.
    trainable = method_class(whole["model"]["class_path"]).trainable
    monkeypatch.setattr(method_class(whole["model"]["class_path"]), "trainable", trainable and verb == "fit")
    assert main([verb, "-c", str(small), *QUICK]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").rglob("study*.yaml")), ids=lambda file: file.stem)
def test_every_cell_of_a_study_is_understood(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    # The first backbone, row and seed with all the others of their axis: what differs is named once.
    for cell in one_axis_at_a_time(Study.read(file, seeds=(0,))):
        command = list(cell.commands()[0])
        if "--ckpt_path" in command:  # of a run that is not here
            del command[(place := command.index("--ckpt_path")) : place + 2]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err


def one_axis_at_a_time(study: Study) -> list[Cell]:
    first = [next(iter(entries)) for entries in study.axes.values()]
    wanted = {
        "-".join([*first[:axis], entry, *first[axis + 1 :]])
        for axis, entries in enumerate(study.axes.values())
        for entry in entries
    }
    return [cell for cell in study.cells() if cell.name.removesuffix("-seed0") in wanted]


def configs(*files: str) -> list[str]:
    """Arguments that stack configurations, other options as they are."""
    return [part for file in files for part in ([file] if file.startswith("--") else ["-c", file])]


def method_class(class_path: str) -> Any:
    module, name = class_path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def row(known: CatalogueEntry, number: int, size: tuple[int, int] = (64, 80)) -> dict:
    """An image whose left half has one class and whose right half another, each a segment; a corner has no label."""
    vocabulary = Vocabulary.load(known.vocabulary)
    draw = np.random.default_rng(number)
    left, right = draw.choice(len(vocabulary), 2, replace=False)
    mask = np.full(size, left, np.uint16 if known.ignore_index > 255 else np.uint8)
    mask[:, size[1] // 2 :] = right
    mask[:8, :8] = known.ignore_index
    panoptic = np.zeros((*size, 3), np.uint8)
    panoptic[mask == left] = (1, 0, 0)
    panoptic[mask == right] = (2, 0, 0)
    listed = [{"id": id, "category_id": int(label), "iscrowd": 0} for id, label in ((1, left), (2, right))]
    image = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    cells = {"image_id": f"{known.name}-{number}", "image": {"bytes": png(image)}, "mask": {"bytes": png(mask)}}
    code = coco_mask.encode(np.asfortranarray(mask == left, np.uint8))
    instance = {"category_id": int(left), "iscrowd": 0, "segmentation": {"counts": code["counts"].decode()}}
    cells |= {"panoptic": {"bytes": png(panoptic)}, "segments_info": listed, "instances": [instance]}
    return cells | {"height": size[0], "width": size[1]}


def shrunk(whole: dict[str, Any]) -> dict[str, Any]:
    """The same experiment, small: a tiny random CLIP of the same kind and depth, an eighth of the pixels, two steps."""
    whole = smaller_pixels(whole)
    model, data = whole["model"]["init_args"], whole["data"]["init_args"]
    if model["clip"]["model"] not in TOY_CLIPS and model["clip"]["config"] is None:
        model["clip"] = {"model": "tiny", "config": tiny_clip(model["clip"]["model"])}
    if model.get("backbone") in SMALL_BACKBONES:
        model["backbone"] = SMALL_BACKBONES[model["backbone"]]
    # Thousands of prompts take longer than two steps.
    assert load_templates(model["templates"])
    model["templates"] = "identity"
    # No released weights, and none of an earlier run.
    absent = {"backbone_pretrained": False, "initial_checkpoint": None}
    model.update({key: value for key, value in absent.items() if key in model})
    if model.get("teachers"):
        color = "ovsl.methods.clip_dinoiser.teachers.ColorTeachers"
        model["teachers"] = {"class_path": color, "init_args": {"patch_size": 16}}
    if model.get("foreground"):
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
        dino = {"model": "vit_small_patch8_224.dino", "pretrained": None, "options": options}
        model["foreground"] = {"decoder": None, "dino": dino}
    if isinstance(data["train"], dict) and "folder" in data["train"]["init_args"]:
        data["train"]["init_args"]["folder"] = str(ROOT / "docs")
    proxy = model.get("last_block", {}).get("init_args", {}).get("proxy")
    if proxy is not None:
        tiny_dino = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
        proxy["init_args"]["settings"].update(pretrained=None, options=tiny_dino)
    if data["regions"] is not None:  # no folder of maps here
        data["regions"] = {"class_path": "ovsl.data.ColorRegions"}
    # Without a transform the catalogue's sizes would be taken.
    data.update(batch_size=2, num_workers=0, evaluation_transform=data["evaluation_transform"] or {})
    one_process = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": None, "sync_batchnorm": False}
    whole["trainer"].update(one_process, fast_dev_run=2, accumulate_grad_batches=1)
    return whole


def smaller_pixels(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {inner: smaller_pixels(each, inner) for inner, each in value.items()}
    if isinstance(value, list):
        return [smaller_pixels(each, key) for each in value]
    return value // 8 if key in PIXELS and isinstance(value, int) else value


def tiny_clip(name: str) -> dict[str, Any]:
    """Configuration of a CLIP with the blocks of a released one, each as narrow as it can be."""
    released = open_clip.get_model_config(name)
    vision, text = released["vision_cfg"], released["text_cfg"]
    tower: dict[str, Any] = {"image_size": 64}
    if "timm_model_name" in vision:
        tower |= {"timm_model_name": "test_convnext2", "timm_model_pretrained": False, "timm_pool": ""}
        tower |= {"timm_proj": "linear"}
    elif isinstance(vision["layers"], list):
        tower |= {"layers": [1, 1, 1, 1], "width": 8}
    else:
        tower |= {"layers": vision["layers"], "width": 32, "head_width": 16, "patch_size": 16}
    words = {"context_length": text["context_length"], "vocab_size": text["vocab_size"]}
    return {"embed_dim": 16, "vision_cfg": tower, "text_cfg": words | {"width": 16, "heads": 2, "layers": 1}}
