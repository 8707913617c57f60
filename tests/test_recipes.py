"""The recipes of the experiments against facts that were derived from the official repositories, not from this code.

Parameter groups are built on tiny CLIPs, which have all kinds of parameters. Where the facts come from:
ZegCLIP (`configs/coco/vpt_seg_zero_vit-b_512x512_80k_12_100_multi.py`, `configs/_base_/schedules/schedule_80k.py`):
AdamW 2e-5, decay 0.01; `custom_keys` multiply the rate of `backbone` and `head` by 10, and MMCV takes the first key
that a name holds, so the keys `norm` and `ln` without decay never apply: one group. Poly 0.9 down to 1e-6 per step,
linear warm-up of 1500 steps from a millionth. Pads normalised images with 0, so with the mean 123.675, 116.28, 103.53.
SAN (`train_net.py:119-178`, `configs/Base-coco-stuff-164K-171.yaml`): AdamW 1e-4, decay 1e-4, none for norms of
torch's own classes and for embeddings of positions and queries; 1e-4 (1 - s / 60000)^0.9; gradients clipped to 0.01.
FC-CLIP (`train_net.py:196-262`, `configs/coco/panoptic-segmentation/*.yaml`): AdamW 1e-4, decay 0.05, none for norms
and embeddings; a tenth at 327778 and again at 355092.
CAT-Seg (`train_net.py`, `configs/config.yaml`): AdamW 2e-4, decay 1e-4, none for norms; query and value weights of both
towers of CLIP at a hundredth; a cosine over 80000 steps to 0; gradients clipped to 0.01; 4 GPUs x 1 image.
LSeg (`modules/lsegmentation_module.py:119-175`): SGD, rate 0.004 / 16 x images of one GPU, `scratch` 10 times that,
decay 1e-4 on all; (1 - epoch / epochs)^0.9, here by step. `lsegmentation_module_zs.py:44,213-216,279`: 20 images,
practically constant on PASCAL and COCO until it ends itself.
DenseCLIP (`segmentation/configs/denseclip_fpn_res50_512x512_80k.py:47-56`): AdamW 1e-4, decay 1e-4; `backbone` a
tenth of the rate, `norm` no decay, the text tower frozen; schedule as ZegCLIP's. Pads with CLIP's mean 122.77,
116.75, 104.09.
CLIP-DINOiser (`train.py`, `configs/clip_dinoiser.yaml`): AdamW with torch's decay of 0.01, 5e-5 and 1e-2, a tenth from
step 5000; 448 x 448 crops, which the short side always fills.
Training-free line (`configs/cfg_*.py` of each repository): sides, windows, scales and thresholds of the eight sets.
"""

from __future__ import annotations

import math
import re
from contextlib import redirect_stdout
from dataclasses import replace
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

import ovsl.cli
from ovsl.__main__ import main
from ovsl.data import EvaluationSet, EvaluationTransform, TrainTransform
from ovsl.vocabulary import ClassNames, Vocabulary, load_templates
from tests.conftest import ROOT
from tests.test_configs import NAMES, STACKED_ON, TESTED, configs, shrunk

IMAGENET_MEAN, CLIP_MEAN, GREY, BLACK = (124, 116, 104), (123, 117, 104), (128, 128, 128), (0, 0, 0)

Rates = dict[int, float]


def places(steps: int) -> tuple[int, ...]:
    return (0, 1, steps // 4, steps // 2, steps - 1)


def mmcv(base: float, steps: int) -> Rates:
    """MMCV's poly with a linear warm-up, by step."""

    def rate(step: int) -> float:
        regular = (base - 1e-6) * (1 - step / steps) ** 0.9 + 1e-6
        return regular * (1 - (1 - 1e-6) * (1 - step / 1500)) if step < 1500 else regular

    return {step: rate(step) for step in places(steps)}


def poly(base: float, steps: int) -> Rates:
    return {step: base * (1 - step / steps) ** 0.9 for step in places(steps)}


def cosine(base: float, steps: int) -> Rates:
    return {step: base * (1 + math.cos(math.pi * step / steps)) / 2 for step in places(steps)}


def test_the_rules_of_rates_give_what_the_official_schedules_were_seen_to_give() -> None:
    assert mmcv(2e-4, 80000)[0] == pytest.approx(2.0e-10, rel=1e-4)
    assert mmcv(2e-4, 80000)[40000] == pytest.approx(1.076415e-4, rel=1e-6)
    assert mmcv(2e-4, 80000)[79999] == pytest.approx(1.007693e-6, rel=1e-6)
    assert mmcv(1e-5, 80000)[1] == pytest.approx(6.677e-9, rel=1e-3)
    assert poly(1e-4, 60000)[15000] == pytest.approx(7.718895e-5, rel=1e-6)
    assert poly(1e-4, 60000)[59999] == pytest.approx(5.007995e-9, rel=1e-4)


def zegclip(steps: int) -> dict[str, Any]:
    return {
        "groups": {"all": (2e-4, 0.01, 74)},
        "rates": mmcv(2e-4, steps),
        "training": (16, None, None),
        "geometry": (512, 512, 2048, (0.5, 2.0), 0.5, 0.75),
        "padding": IMAGENET_MEAN,
        "photometric": True,
    }


SAN = {
    "groups": {"decayed": (1e-4, 1e-4, None), "not_decayed": (1e-4, 0.0, None)},
    # The norms of the fusions are a class of SAN's own, which its rule does not know.
    "undecayed": ((nn.LayerNorm,), r"position_embedding|positional_embedding|query_embedding", r"fusions"),
    "rates": poly(1e-4, 60000),
    "training": (32, "16-mixed", 0.01),
    "geometry": (640, [*range(320, 961, 64)], 2560, (1.0, 1.0), 0.5, None),
    "padding": GREY,
    "photometric": True,
    "antialiased": True,
}
FC_CLIP = {
    "groups": {"weights": (1e-4, 0.05, None), "norms_and_embeddings": (1e-4, 0.0, None)},
    "undecayed": ((nn.LayerNorm, nn.GroupNorm), r"query_(features|positions)|mask_decoder.level_embedding|void", "^$"),
    "rates": {0: 1e-4, 327777: 1e-4, 327778: 1e-5, 355091: 1e-5, 355092: 1e-6},
    "training": (16, "bf16-mixed", 0.01),
    "geometry": (1024, 1024, 1024, (0.1, 2.0), 0.5, None),
    "padding": GREY,
    "antialiased": True,
}
CAT_SEG = {
    # Two weights in every block of the towers; the tiny text tower has one.
    "groups": {"network": (2e-4, 1e-4, None), "norms": (2e-4, 0.0, None), "clip": (2e-6, 1e-4, 2)},
    "undecayed": ((nn.LayerNorm, nn.GroupNorm), "^$", "^$"),
    "rates": cosine(2e-4, 80000),
    "training": (4, None, 0.01),
    "geometry": (384, [384], 1333, (1.0, 1.0), 0.5, None),
    "padding": GREY,
    "photometric": True,
    "antialiased": True,
}


def lseg(encoder: int | None) -> dict[str, Any]:
    return {
        "groups": {"encoder": (1e-3, 1e-4, encoder), "decoder": (1e-2, 1e-4, 56)},
        "rates": poly(1e-3, 63000),
        "training": (64, None, None),
        "geometry": (480, 520, 520, (0.5, 2.0), 0.5, None),
        "padding": BLACK,
        "antialiased": True,
    }


def few_shot(rates: Rates) -> dict[str, Any]:
    groups = {"encoder": (5e-3, 1e-4, None), "decoder": (5e-2, 1e-4, 56)}
    geometry = (480, None, None, (0.5, 2.0), 0.0, None)  # stretched: no side and no scale is asked for
    return lseg(None) | {
        "groups": groups,
        "rates": rates,
        "training": (32, None, None),
        "geometry": geometry,
        "padding": None,
    }


def denseclip(backbone: int | None = None, language: bool = True, side: int = 512) -> dict[str, Any]:
    norms = {"norm": (1e-4, 0.0, 18)} if language else {}
    return {
        "groups": {"backbone": (1e-5, 1e-4, backbone), "rest": (1e-4, 1e-4, 97 if language else 39), **norms},
        "undecayed": ((), r"context_decoder\..*\.norm\d", "^$"),
        "rates": mmcv(1e-5, 80000),
        "training": (32, None, None),
        "geometry": (side, side, 2048, (0.5, 2.0), 0.5, 0.75),
        "padding": CLIP_MEAN,
        "photometric": True,
    }


TRAINED: dict[str, dict[str, Any]] = {
    **{f"zegclip/{name}": zegclip(20000) for name in ("voc_inductive", "voc_supervised")},
    **{f"zegclip/{name}": zegclip(80000) for name in ("coco_inductive", "coco_supervised")},
    **{f"zegclip/{name}": zegclip(40000) for name in ("context_inductive", "context_supervised")},
    "zegclip/voc_transductive": zegclip(10000),
    "zegclip/coco_transductive": zegclip(40000),
    "zegclip/context_transductive": zegclip(20000),
    "san/vit_b_16": SAN,
    "san/vit_l_14": SAN,
    "san/zero_shot": SAN,
    "fc_clip/convnext_large_coco_panoptic": FC_CLIP,
    "fc_clip/resnet_coco_panoptic": FC_CLIP,
    "cat_seg/vit_b_16": CAT_SEG | {"groups": CAT_SEG["groups"] | {"clip": (2e-6, 1e-4, 26)}},
    "cat_seg/vit_l_14": CAT_SEG | {"groups": CAT_SEG["groups"] | {"clip": (2e-6, 1e-4, 50)}},
    # A vision transformer of twelve blocks has 148 tensors, readout and reassembling 22.
    "lseg/ade20k_vit_b_32": lseg(170),
    "lseg/ade20k_vit_l_16": lseg(None),
    "lseg/ade20k_vit_l_16_rn50x16": lseg(None),
    "lseg/pascal_5i": few_shot(dict.fromkeys(places(2850), 5e-3)),
    "lseg/coco_20i": few_shot(dict.fromkeys(places(15500), 5e-3)),
    "lseg/fss_1000": few_shot(poly(5e-3, 78000)),
    "denseclip/rn50": denseclip(),
    "denseclip/rn101": denseclip(),
    "denseclip/vit_b_16": denseclip(168, side=640),
    "denseclip/rn50_clip": denseclip(language=False),
    "denseclip/rn101_clip": denseclip(language=False),
    "denseclip/vit_b_16_clip": denseclip(language=False, side=640),
    "clip_dinoiser/imagenet": {
        "groups": {"correlation": (5e-5, 0.01, 2), "foreground": (1e-2, 0.01, 2)},
        "rates": {0: 5e-5, 1: 5e-5, 4999: 5e-5, 5000: 5e-6, 6299: 5e-6},
        "training": (16, None, None),
        "geometry": (448, 448, None, (1.0, 1.0), 0.5, None),
        "padding": None,
        "photometric": True,
    },
}
"""Rate, decay and, where it is known, number of tensors of each group; the rate of one group at five steps; images of a
step, precision, clipping; crop, short and long side, scale, mirror, largest share of a class in a crop; what is padded;
and, if so: that colours change, that shrinking antialiases.
"""

OUR_OWN = ("clip_lightweight/",)
"""Experiments of a method without official code."""


@lru_cache
def configured(name: str) -> dict[str, Any]:
    """The whole experiment, defaults included; not to be changed."""
    below = next((below for start, below in STACKED_ON.items() if name.startswith(start)), [])
    printed, verb = StringIO(), "test" if name.startswith(TESTED) else "fit"
    with redirect_stdout(printed), pytest.raises(SystemExit):
        main([verb, *configs(*below, str(ROOT / f"experiments/{name}.yaml")), "--print_config"])
    whole: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return whole


def copy(settings: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = yaml.safe_load(yaml.safe_dump(settings))
    return copied


def test_every_experiment_has_its_facts() -> None:
    names = {name.removesuffix(".yaml") for name in NAMES if not name.startswith(OUR_OWN)}
    assert names == TRAINED.keys() | {name for name in EVALUATED if name.startswith(TESTED)}
    assert names == EVALUATED.keys()


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_groups_rates_and_training_are_the_published_ones(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, whole = TRAINED[name], configured(name)
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(shrunk(copy(whole)) | {"print_recipe": True}))
    built: dict[str, Any] = {}
    monkeypatch.setattr(ovsl.cli, "recipe", lambda model, data, trainer: built.update(model=model) or "")
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(small)])
    model = built["model"]
    groups = {group["name"]: group for group in model.build_optimizer().param_groups}
    assert groups.keys() == facts["groups"].keys()
    names = {id(p): name for name, p in model.named_parameters()}
    for group, (rate, decay, tensors) in facts["groups"].items():
        assert (groups[group]["lr"], groups[group]["weight_decay"]) == pytest.approx((rate, decay), rel=1e-6)
        assert tensors is None or len(groups[group]["params"]) == tensors
    grouped = [names[id(p)] for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    undecayed = [names[id(p)] for group in groups.values() if not group["weight_decay"] for p in group["params"]]
    assert sorted(undecayed) == sorted(undecayed_by_the_rule(model, *facts.get("undecayed", ((), "^$", "^$"))))
    steps, schedule = whole["trainer"]["max_steps"], model.schedule
    first = next(iter(facts["groups"].values()))[0]
    rates = {step: schedule.learning_rate(first, step, steps) for step in facts["rates"]}
    assert rates == pytest.approx(facts["rates"], rel=1e-4, abs=1e-15)
    trainer, data = whole["trainer"], whole["data"]["init_args"]
    images = data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"]
    assert (images, trainer["precision"], trainer["gradient_clip_val"]) == facts["training"]


def undecayed_by_the_rule(model: nn.Module, kinds: tuple[type, ...], names: str, but: str) -> list[str]:
    """Names of what trains without decay: parameters of some kinds of modules, and those of some names."""
    norms = {
        f"{module}.{own}"
        for module, each in model.named_modules()
        if isinstance(each, kinds) and not re.search(but, module)
        for own, _ in each.named_parameters(recurse=False)
    }
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name in trained if name in norms or re.search(names, name)]


@pytest.mark.parametrize("name", TRAINED)
def test_pixels_are_those_of_the_official_pipelines(name: str) -> None:
    facts, data = TRAINED[name], configured(name)["data"]["init_args"]
    transform = TrainTransform(**data["train_transform"])
    sides, chance = (transform.crop_size, transform.short_side, transform.long_side), transform.category_max_ratio
    assert (*sides, tuple(transform.scale), transform.flip, chance) == facts["geometry"]
    assert transform.stretch == (facts["geometry"][1] is None)
    pipeline = transform.pipeline(255)
    # Too flat to fill any crop of jittered scale; its colour is none that anything is padded with.
    image = np.full((60, 700, 3), (10, 200, 90), np.uint8)
    mask = np.zeros((60, 700), np.uint8)
    mask[:, 350:] = 1
    padded = 0
    for seed in range(12):
        pipeline.set_random_seed(seed)
        result = pipeline(image=image, mask=mask)
        hidden = result["mask"] == 255
        padded += int(hidden.any())
        # Right and below only: what is padded is an L around the upper left corner.
        assert (hidden == (hidden[:, :1] | hidden[:1])).all()
        assert (result["image"][hidden] == (facts["padding"] or GREY)).all()
        assert facts.get("photometric") or (result["image"][~hidden] == (10, 200, 90)).all()
    assert (padded > 0) == (facts["padding"] is not None)
    if not transform.stretch and not facts.get("photometric"):
        factor = TrainTransform(**data["train_transform"] | {"scale": (0.3, 0.3), "short_side": 600, "long_side": None})
        pipeline = factor.pipeline(255)
        pipeline.set_random_seed(0)
        result = pipeline(image=stripes(), mask=np.zeros((600, 4000), np.uint8))
        assert is_grey(result["image"][result["mask"] != 255]) == facts.get("antialiased", False)


def stripes() -> np.ndarray:
    """Stripes of one pixel: shrunk by Pillow's rule they are grey, shrunk by OpenCV's they stay stripes."""
    image = np.zeros((600, 4000, 3), np.uint8)
    image[::2] = 255
    return image


def is_grey(image: np.ndarray) -> bool:
    return bool(np.abs(image.astype(int) - 127).mean() < 20)


# Evaluation ----------------------------------------------------------------------------------------------------------

LINE = {
    # Of VOC21, Context60, COCO-Object, VOC20, Context59, COCO-Stuff, Cityscapes, ADE20K.
    "sclip": {
        "sides": (336, 336, 336, 336, 336, 448, 560, 336),
        "windows": ((224, 112),) * 8,
        "scale": (65, 50, 50, 40, 40, 40, 40, 40),
        "threshold": (0.1, 0.1, 0.1, 0, 0, 0, 0, 0),
        "area": (0.1, None, None, None, None, None, None, None),
    },
    "naclip": {
        "sides": (336, 336, 336, 336, 336, 336, 560, 336),
        "windows": ("whole", (224, 112), (224, 112), "whole", *((224, 112),) * 4),
        "scale": (40,) * 8,
        "threshold": (0.1, 0.1, 0.1, 0, 0, 0, 0, 0),
        "refined": True,
    },
    "clearclip": {
        "sides": (448,) * 8,
        "windows": (*((448, 224),) * 6, (224, 224), (448, 224)),
        "scale": (50,) * 8,
        "threshold": (0.5, 0.15, 0.4, 0, 0, 0, 0, 0),
    },
    "proxyclip": {
        "sides": (336, 336, 336, 336, 336, 336, 448, 448),
        "windows": (*((336, 112),) * 6, (224, 112), (336, 112)),
        "scale": (40,) * 8,
        "threshold": (0.2, 0.15, 0.25, 0, 0, 0, 0, 0),
    },
}
LINE["corrclip"] = LINE["proxyclip"] | {"corrected": True}
EIGHT = (
    "pascal_voc_21", "pascal_context_60", "coco_object_81", "pascal_voc_20", "pascal_context_59", "coco_stuff_171",
    "cityscapes_19", "ade20k_150",
)  # fmt: skip


def by_set(values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(EIGHT, values, strict=True))


def facts(
    templates: int,
    short: int | dict[str, int] | None,
    longest: int | None = None,
    windows: Any = "whole",
    names: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    return {"templates": templates, "short": short, "longest": longest, "windows": windows, "names": names or {}} | more


ADE_NAMES = {"ade20k_150 road, route": "road", "ade20k_150 tv": "television receiver"}
EVALUATED: dict[str, dict[str, Any]] = {
    **{
        name: facts(15 if "voc" not in name else 1, 512, None, (512, 426), absent="zero", offset=0.1)
        for name in TRAINED
        if name.startswith("zegclip/")
    },
    "zegclip/coco_to_voc": facts(1, 512, None, (512, 426), absent="zero", offset=0.0),
    "zegclip/coco_to_context": facts(
        15, 512, None, (512, 426), {"pascal_context_60 diningtable": "table"}, absent="zero", offset=0.0
    ),
    **dict.fromkeys(
        ("san/vit_b_16", "san/vit_l_14", "san/zero_shot"),
        facts(14, 640, 2560, names={"pascal_voc_20 tvmonitor": "tv"}, antialiased=True),
    ),
    **dict.fromkeys(
        ("fc_clip/convnext_large_coco_panoptic", "fc_clip/resnet_coco_panoptic"),
        facts(14, 800, 1333, antialiased=True, synonyms="max"),
    ),
    "fc_clip/test_all": facts(
        14,
        {"cityscapes_19": 1024, "mapillary_vistas_65": 1024, "": 800},
        {"cityscapes_19": 2560, "mapillary_vistas_65": 2560, "": 1333},
        antialiased=True,
        synonyms="max",
        scores_first={"ade20k_847", "pascal_context_459", "pascal_context_59", "pascal_voc_21", "pascal_voc_20"},
    ),
    **dict.fromkeys(
        ("cat_seg/vit_b_16", "cat_seg/vit_l_14"),
        facts(1, 640, 2560, (384, 256), {"ade20k_150 tub": "bathtub"}, antialiased=True),
    ),
    **dict.fromkeys(
        ("lseg/ade20k_vit_l_16", "lseg/ade20k_vit_l_16_rn50x16", "lseg/ade20k_vit_b_32"),
        facts(1, None, windows="scales", names={"ade20k_150 pool table, billiard table, snooker table": "pool"}),
    ),
    **dict.fromkeys(
        ("lseg/pascal_5i", "lseg/coco_20i", "lseg/fss_1000"), facts(1, None, stretch=480, antialiased=True)
    ),
    **{
        f"denseclip/{name}": facts(80, 512, 2048, (512, 341), ADE_NAMES)
        for name in ("rn50", "rn101", "rn50_clip", "rn101_clip")
    },
    **dict.fromkeys(("denseclip/vit_b_16", "denseclip/vit_b_16_clip"), facts(80, 640, 2048, (640, 426), ADE_NAMES)),
    "denseclip/multi_scale": facts(80, 512, 2048, "scales", ADE_NAMES),
    **dict.fromkeys(
        ("clip_dinoiser/test", "clip_dinoiser/test_background", "clip_dinoiser/imagenet"),
        facts(80, 448, 2048, (448, 224), {"pascal_voc_20 pottedplant": "potted plant"} | ADE_NAMES),
    ),
    "training_free/maskclip": facts(
        80, 448, 2048, (448, 224), {"pascal_voc_20 pottedplant": "potted plant"} | ADE_NAMES
    ),
    "clip_diy/test": facts(1, None, windows="own"),
    "clip_diy/test_background": facts(1, None, windows="own", names={"pascal_voc_21 tvmonitor": "tv/monitor"}),
    **{
        f"training_free/{name}": facts(80, by_set(line["sides"]), 2048, by_set(line["windows"]), line=line)
        for name, line in LINE.items()
    },
}
"""Number of templates; short side, longest side and windows (side, stride) of the tests, by set where they differ;
names that are shown; and, if not as usual: how mIoU treats absent classes, that shrinking antialiases, which synonyms.
"""


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_is_the_published_one(name: str) -> None:
    known, whole = EVALUATED[name], configured(name)
    model, data = whole["model"]["init_args"], whole["data"]["init_args"]
    assert len(load_templates(model["templates"])) == known["templates"]
    assert model["absent_classes"] == known.get("absent", "skip")
    assert (model["synonyms"] or "first") == known.get("synonyms", "max" if "line" in known else "first")
    assert model.get("seen_offset", 0.1) == known.get("offset", 0.1)
    assert model["mixed_precision_evaluation"] is False
    for key, shown in known["names"].items():
        vocabulary, _, own = key.partition(" ")
        assert ClassNames(model["class_names"]).of(Vocabulary.load(vocabulary)).get(own, (own,)) == (shown,)
    for position, dataset in enumerate(data["evaluation"]):
        check_sizes(dataset, known, data)
        inference = (model["inference_for"] or {}).get(dataset, model["inference"])
        masks_first = dataset not in known.get("scores_first", ())
        check_inference(dataset, known, inference.get("init_args", {}), masks_first)
        if "line" in known:
            assert dataset == EIGHT[position]
            check_rules(known["line"], position, inference["init_args"])


def of(value: Any, dataset: str) -> Any:
    return value.get(dataset, value.get("")) if isinstance(value, dict) else value


def check_sizes(dataset: str, known: dict[str, Any], data: dict[str, Any]) -> None:
    given = data["evaluation"][dataset]["transform"] or data["evaluation_transform"]
    whole = EvaluationSet().complete(dataset, transform=given and EvaluationTransform(**given))
    assert whole.transform is not None
    short, longest = of(known["short"], dataset), of(known["longest"], dataset)
    for height, width in ((375, 500), (640, 427), (300, 2400)):
        factor = 1.0 if short is None else short / min(height, width)
        if longest is not None:
            factor = min(factor, longest / max(height, width))
        expected = (int(height * factor + 0.5), int(width * factor + 0.5))
        if "stretch" in known:
            expected = (known["stretch"], known["stretch"])
        found = whole.transform(np.zeros((height, width, 3), np.uint8)).shape[:2]
        assert np.abs(np.subtract(found, expected)).max() <= 1, "a half is rounded to even here"
    if short is not None or "stretch" in known:
        third = replace(whole.transform, short_side=200, stretch=200 if "stretch" in known else None)
        assert is_grey(third(stripes())) == known.get("antialiased", False)


def check_inference(dataset: str, known: dict[str, Any], options: dict[str, Any], masks_first: bool) -> None:
    windows = of(known["windows"], dataset)
    own = options.get("inference", options)
    own = own.get("init_args", own)
    if windows == "scales":
        assert options["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
        assert options["flip"] is True
    elif windows == "whole":
        assert "crop_size" not in own
        assert own.get("resize_masks_first", True) == masks_first
    elif windows != "own":
        stride = own["stride"] if "stride" in own else int(own["crop_size"] * (1 - own["overlap"]))
        assert (own["crop_size"], stride) == windows


def check_rules(line: dict[str, Any], position: int, options: dict[str, Any]) -> None:
    rules = options["rules"]
    assert (rules["logit_scale"], rules["probability_threshold"]) == (
        line["scale"][position],
        line["threshold"][position],
    )
    assert rules["area_threshold"] == line.get("area", (None,) * 8)[position]
    assert (options["refinement"] is not None) == line.get("refined", False)
    if options["refinement"] is not None:
        assert options["refinement"]["init_args"] == {"steps": 10, "dilations": [8, 16]}
    assert options["correct_regions"] is line.get("corrected", False)


def test_the_recipe_is_printed_in_a_dozen_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.yaml"
    shrunken = shrunk(copy(configured("san/vit_b_16")))
    shrunken["trainer"] |= {"devices": 8, "max_steps": 60000, "precision": "16-mixed", "accelerator": "gpu"}
    small.write_text(yaml.safe_dump(shrunken | {"run_dir": str(tmp_path / "run")}))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", str(small), "--print_recipe"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.strip().splitlines()
    lines = lines[[line.startswith("data") for line in lines].index(True) :]
    assert len(lines) <= 13
    text = "\n".join(lines)
    for part in ("2 x 8 devices x 1 accumulated = 16; 60000 steps", "decay 0.0001", "decay 0", "16-mixed in training"):
        assert part in text
    assert text.index("Crop >") < text.index("PhotometricDistortion >") < text.index("PadIfNeeded")
    assert not (tmp_path / "run").exists(), "nothing is started"
