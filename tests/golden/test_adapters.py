"""The adapters read the form of a case from its `meta.json`: shipped cases, recorded in another form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tests.golden.harness import SHIPPED, Case, compare, find_cases

Change = Callable[[dict[str, Any], dict[str, Tensor]], None]
SHIPPED_CASES = {case.method: case for case in find_cases() if case.path.is_relative_to(SHIPPED)}


def variant(method: str, folder: Path, change: Change) -> Case:
    """A shipped case whose description and recorded tensors are changed in place."""
    case = SHIPPED_CASES[method]
    meta, io = json.loads(json.dumps(case.meta)), case.io
    change(meta, io)
    save_file({name: tensor.contiguous() for name, tensor in io.items()}, folder / "io.safetensors")
    for weights in case.path.glob("weights*.safetensors"):
        (folder / weights.name).symlink_to(weights)
    return Case(method, "variant", folder, meta)


def assert_reproduced(case: Case, at_least: int) -> None:
    comparisons = compare(case)
    assert len(comparisons) >= at_least
    assert not [each for each in comparisons if not each.passed]


@pytest.mark.parametrize("method", SHIPPED_CASES)
def test_an_unknown_key_is_named(method: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="unknown keys: .*shear"):
        compare(variant(method, tmp_path, lambda meta, io: meta.update(shear=2)))


@pytest.mark.parametrize(
    "said", ["every 4th row and column only", "full[..., ::4, ::4]", {"stored_stride": 4}, ["Masks: every 4th pixel."]]
)
def test_fc_clip_masks_may_be_recorded_in_part_where_meta_says_so(said: Any, tmp_path: Path) -> None:
    def thin(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        for name in ("out/instance_masks_0", "out/panoptic_seg_0", "out/sem_seg_0"):
            io[name] = io[name][..., ::4, ::4]
            if isinstance(said, str):
                meta["tensors"][name]["meaning"] += f", {said}"
        if isinstance(said, dict):
            meta["config"] |= said
        if isinstance(said, list):
            meta["notes"] += said

    assert_reproduced(variant("fc_clip", tmp_path, thin), 60)


def test_a_part_that_meta_does_not_tell_of_fails_the_case(tmp_path: Path) -> None:
    def thin(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        io["out/sem_seg_0"] = io["out/sem_seg_0"][..., ::4, ::4]

    with pytest.raises(AssertionError, match="names no such part"):
        compare(variant("fc_clip", tmp_path, thin))


def test_lseg_images_may_be_no_multiple_of_the_patch(tmp_path: Path) -> None:
    def widen(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        # The patch embedding drops what is left over, so the recorded outputs stay as they are.
        io["image"] = functional.pad(io["image"], (0, 7, 0, 5), value=0.3)
        meta["config"]["image_size"] = list(io["image"].shape[-2:])

    assert_reproduced(variant("lseg", tmp_path, widen), 20)


@pytest.mark.parametrize("layout", ["(K, 2)", "(2K,)", "(B, 2)", "(K + 1,)"])
def test_lseg_episodes_may_list_labels_in_any_layout(layout: str, tmp_path: Path) -> None:
    asked = 1

    def ask(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        """Ask for one class against the last label: logits of a label do not depend on the others."""
        names = meta["config"]["class_names"][:2]
        meta["config"].update(class_info=[asked], class_names=names, ms=None)
        for name in [name for name in io if name.startswith(("grad", "loss", "ms_", "gt"))]:
            del io[name]
        io["gt"] = torch.zeros_like(io["pred"])
        for name in ("pixel_logits", "logits"):
            io[name] = io[name][:, [2, asked]]
        io["pred"] = io["logits"].argmax(1)
        tokenize, texts = open_clip.get_tokenizer("ViT-B-32"), io["text_features"]
        labels, rows = {
            "(K, 2)": ([["others", name] for name in names], [[2, 0], [2, 1]]),
            "(2K,)": (["others", names[0], "others", names[1]], [2, 0, 2, 1]),
            "(B, 2)": ([["others", names[asked]]], [[2, asked]]),
            "(K + 1,)": (["others", *names], [2, 0, 1]),
        }[layout]
        io["text_features"] = texts[torch.tensor(rows)]
        io["token_ids"] = torch.stack(
            [tokenize(row) if isinstance(row, list) else tokenize([row])[0] for row in labels]
        )

    assert_reproduced(variant("lseg", tmp_path, ask), 13)


def value_path(weights: dict[str, Tensor], meta: dict[str, Any], io: dict[str, Tensor]) -> dict[str, Tensor]:
    """Value path of the last block with QuickGELU, written out in tensor operations."""
    vision, x = meta["open_clip_config"]["vision_cfg"], io["block_m2_out"]
    block = f"visual.transformer.resblocks.{vision['layers'] - 1}."
    w = {name.removeprefix(block): weights[name] for name in weights}

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], meta["layer_norm_eps"])

    width = x.shape[-1]
    value = norm(x, "ln_1") @ w["attn.in_proj_weight"][2 * width :].T + w["attn.in_proj_bias"][2 * width :]
    x = x + value @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
    hidden = norm(x, "ln_2") @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    x = x + hidden @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    features = norm(x, "visual.ln_post")[:, 1:] @ w["visual.proj"]
    return {"value_path_out": x, "feat": features.transpose(1, 2).unflatten(2, io["feat"].shape[-2:])}


def test_maskclip_cases_may_use_quick_gelu(tmp_path: Path) -> None:
    weights = SHIPPED_CASES["maskclip"].weights

    def activate(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        meta["activation"] = "quick_gelu x*sigmoid(1.702x)"
        network = open_clip.CLIP(**meta["open_clip_config"], quick_gelu=True).eval()
        network.load_state_dict(weights, strict=False)
        mean, std = (torch.tensor(meta[key]).view(3, 1, 1) for key in ("norm_mean", "norm_std"))
        side, visual = meta["open_clip_config"]["vision_cfg"]["patch_size"], network.visual
        height, width = (length // side * side for length in io["image"].shape[-2:])
        patches = visual.conv1(((io["image"] - mean) / std)[..., :height, :width]).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches], dim=1) + io["pos_embed_resized"]
        tokens = visual.ln_pre(tokens)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        recorded = {"block_m2_out": tokens.detach()}
        recorded |= value_path(weights, meta, io | recorded)
        different = (recorded["feat"] - io["feat"]).abs().max()
        assert different > 1e-3, "the activation makes a difference"
        for name in [name for name in io if name not in ("image", "slide_image", "class_embeddings")]:
            del io[name]
        io |= recorded

    with torch.no_grad():
        assert_reproduced(variant("maskclip", tmp_path, activate), 3)


def test_windows_may_be_no_squares(tmp_path: Path) -> None:
    def widen(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        meta["slide"].update(crop=[16, 32], stride=[16, 20])
        kept = ("image", "slide_image", "class_embeddings")
        for name in [name for name in io if name not in kept]:
            del io[name]
        rows, columns = [(0, 16), (16, 32), (32, 48)], [(0, 32), (20, 52), (40, 72)]
        io["slide_windows"] = torch.tensor([(y1, x1, y2, x2) for y1, y2 in rows for x1, x2 in columns])

    assert_reproduced(variant("maskclip", tmp_path, widen), 1)
