"""The recipes of the experiments against facts that were derived from the official repositories, not from this code.

Parameter groups are built on tiny CLIPs, which have all kinds of parameters. Where the facts come from:
ZegCLIP (`configs/coco/vpt_seg_zero_vit-b_512x512_80k_12_100_multi.py`, `configs/_base_/schedules/schedule_80k.py`):
AdamW 2e-5, decay 0.01; `custom_keys` multiply the rate of `backbone` and `head` by 10, and MMCV takes the first key
that a name holds, so the keys `norm` and `ln` without decay never apply: one group. Poly 0.9 down to 1e-6 per step,
linear warm-up of 1500 steps from a millionth: at step s the rate is r(s) (1 - (1 - 1e-6) (1 - s / 1500)) with r(s) =
(2e-4 - 1e-6) (1 - s / 80000)^0.9 + 1e-6. Pads normalised images with 0, so with the mean 123.675, 116.28, 103.53.
SAN (`train_net.py:119-178`, `configs/Base-coco-stuff-164K-171.yaml`): AdamW 1e-4, decay 1e-4, none for norms of
torch's own classes and for embeddings of positions and queries; 1e-4 (1 - s / 60000)^0.9; gradients clipped to 0.01.
FC-CLIP (`train_net.py:196-262`, `configs/coco/panoptic-segmentation/*.yaml`): AdamW 1e-4, decay 0.05, none for norms
and embeddings; a tenth at 327778 and again at 355092.
LSeg (`modules/lsegmentation_module.py:119-175`): SGD, rate 0.004 / 16 x images of one GPU, `scratch` 10 times that,
decay 1e-4 on all; (1 - epoch / 200)^0.9, here by step. `lsegmentation_module_zs.py:44,213-216,279`: 20 images,
practically constant until it ends itself.
DenseCLIP (`segmentation/configs/denseclip_fpn_res50_512x512_80k.py:47-56`): AdamW 1e-4, decay 1e-4; `backbone` a
tenth of the rate, `norm` no decay, the text tower frozen; schedule as ZegCLIP's. Pads with CLIP's mean 122.77,
116.75, 104.09.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ovsl.cli
from ovsl.__main__ import main
from ovsl.data import EvaluationTransform, TrainTransform
from tests.conftest import ROOT
from tests.test_configs import shrunk

IMAGENET_MEAN, CLIP_MEAN, GREY, BLACK = (124, 116, 104), (123, 117, 104), (128, 128, 128), (0, 0, 0)

ZEGCLIP = {
    "groups": {"all": (2e-4, 0.01)},
    "rates": {0: 2.0e-10, 750: 9.916017e-5, 1500: 1.966387e-4, 40000: 1.076415e-4, 79999: 1.007693e-6},
    "training": (16, None, None),
    "padding": IMAGENET_MEAN,
    "photometric": True,
    "antialiased": False,
}
DENSECLIP = {
    "groups": {"backbone": (1e-5, 1e-4), "norm": (1e-4, 0.0), "rest": (1e-4, 1e-4)},
    "rates": {0: 1.0e-11, 1: 6.677e-9, 750: 4.962e-6, 1500: 9.848e-6, 40000: 5.823e-6},
    "training": (32, None, None),
    "padding": CLIP_MEAN,
    "photometric": True,
    "antialiased": False,
}
LSEG = {
    "groups": {"encoder": (1e-3, 1e-4), "decoder": (1e-2, 1e-4)},
    "rates": {0: 1.0e-3, 100: 9.986e-4, 10000: 8.563e-4, 31500: 5.359e-4, 62999: 4.8e-8},
    "training": (64, None, None),
    "padding": BLACK,
    "photometric": False,
    "antialiased": True,
}
FOLDS = LSEG | {
    "groups": {"encoder": (5e-3, 1e-4), "decoder": (5e-2, 1e-4)},
    "rates": dict.fromkeys((0, 100, 1000, 2000, 2849), 5e-3),
    "training": (32, None, None),
    "padding": None,
}
SAN = {
    "groups": {"decay": (1e-4, 1e-4), "no_decay": (1e-4, 0.0)},
    "rates": {0: 1e-4, 1: 9.999850e-5, 15000: 7.718895e-5, 30000: 5.358867e-5, 59999: 5.007995e-9},
    "training": (32, "16-mixed", 0.01),
    "padding": GREY,
    "photometric": True,
    "antialiased": True,
}
FC_CLIP = {
    "groups": {"decay": (1e-4, 0.05), "no_decay": (1e-4, 0.0)},
    "rates": {0: 1e-4, 327777: 1e-4, 327778: 1e-5, 355091: 1e-5, 355092: 1e-6},
    "training": (16, "bf16-mixed", 0.01),
    "padding": GREY,
    "photometric": False,
    "antialiased": True,
}
FACTS = {
    "zegclip/coco_inductive": ZEGCLIP,
    "zegclip/coco_supervised": ZEGCLIP,
    "denseclip/rn50": DENSECLIP,
    "denseclip/vit_b_16": DENSECLIP,
    "lseg/ade20k_vit_l_16": LSEG,
    "lseg/pascal_5i": FOLDS,
    "san/vit_b_16": SAN,
    "fc_clip/convnext_large_coco_panoptic": FC_CLIP,
}


def configured(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(ROOT / f"experiments/{name}.yaml"), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", FACTS)
def test_groups_rates_and_training_are_the_published_ones(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, whole = FACTS[name], configured(name, capsys)
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(shrunk(yaml.safe_load(yaml.safe_dump(whole))) | {"print_recipe": True}))
    built: dict[str, Any] = {}
    monkeypatch.setattr(ovsl.cli, "recipe", lambda model, data, trainer: built.update(model=model) or "")
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(small)])
    groups = built["model"].build_optimizer().param_groups
    found = sorted((group["lr"], group["weight_decay"]) for group in groups)
    np.testing.assert_allclose(found, sorted(facts["groups"].values()), rtol=1e-6)
    names = {id(p): name for name, p in built["model"].named_parameters()}
    grouped = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(n for n, p in built["model"].named_parameters() if p.requires_grad)
    steps, schedule = whole["trainer"]["max_steps"], built["model"].schedule
    rates = {step: schedule.learning_rate(groups[0]["lr"], step, steps) for step in facts["rates"]}
    assert rates == pytest.approx(facts["rates"], rel=5e-3)
    trainer, data = whole["trainer"], whole["data"]["init_args"]
    images = data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"]
    assert (images, trainer["precision"], trainer["gradient_clip_val"]) == facts["training"]


@pytest.mark.parametrize("name", FACTS)
def test_pixels_are_those_of_the_official_pipelines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts, data = FACTS[name], configured(name, capsys)["data"]["init_args"]
    transform = TrainTransform(**data["train_transform"])
    pipeline = transform.pipeline(255)
    # Too flat to fill any crop; its colour is none that anything is padded with.
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
        assert (result["image"][hidden] == facts["padding"]).all() if hidden.any() else True
        assert facts["photometric"] or (result["image"][~hidden] == (10, 200, 90)).all()
    assert (padded > 0) == (facts["padding"] is not None)
    # Stripes of one pixel: shrunk by Pillow's rule they are grey, shrunk by OpenCV's they stay stripes.
    stripes = np.zeros((600, 4000, 3), np.uint8)
    stripes[::2] = 255
    settings = data["evaluation_transform"] or {}
    if settings.get("short_side") is not None and name not in ("lseg/pascal_5i",):
        shrunken = EvaluationTransform(**settings | {"short_side": 200})(stripes).astype(int)
        assert (np.abs(shrunken - 127).mean() < 20) == facts["antialiased"]
    if not transform.stretch:
        factor = TrainTransform(**data["train_transform"] | {"scale": (0.3, 0.3), "short_side": 600, "long_side": None})
        pipeline = factor.pipeline(255)
        pipeline.set_random_seed(0)
        result = pipeline(image=stripes, mask=np.zeros((600, 4000), np.uint8))
        if not facts["photometric"]:
            inside = result["image"][result["mask"] != 255].astype(int)
            assert (np.abs(inside - 127).mean() < 20) == facts["antialiased"]


def test_the_recipe_is_printed_in_a_dozen_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = configured("san/vit_b_16", capsys)
    small = tmp_path / "small.yaml"
    shrunken = shrunk(yaml.safe_load(yaml.safe_dump(whole)))
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
