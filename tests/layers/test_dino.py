from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional

from ovsl.errors import InputError
from ovsl.layers.dino import DINO, DINOSettings, load_dino
from ovsl.layers.found import FOUND, FOUNDSettings, load_decoder

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
REGISTERS = "vit_base_patch14_reg4_dinov2.lvd142m"


def build(model="vit_base_patch16_224.dino", **options):
    torch.manual_seed(0)
    dino = DINOSettings(model, None, SIZES | options).build()
    for parameter in dino.parameters():  # timm starts registers and positions near zero
        torch.nn.init.normal_(parameter, std=0.3)
    return dino


@pytest.mark.parametrize("model", ["vit_base_patch16_224.dino", "vit_base_patch14_dinov2.lvd142m", REGISTERS])
def test_at_its_own_size_it_is_the_model_of_timm(model):
    dino, images = build(model), torch.randn(2, 3, 32, 32)
    expected = dino.model.forward_features(images)[:, dino.model.num_prefix_tokens :]
    torch.testing.assert_close(dino(images).flatten(2).transpose(1, 2), expected)


def test_projections_are_those_of_the_last_block():
    dino, images = build(), torch.randn(2, 3, 32, 48)
    seen = []
    dino.model.blocks[-1].attn.qkv.register_forward_hook(lambda *given: seen.append(given[2]))
    dino(images)
    whole = seen.pop()
    for part, projection in zip(whole[:, 1:].chunk(3, dim=2), dino.last_projections(images), strict=True):
        assert projection.shape == (2, 24, 4, 6)
        torch.testing.assert_close(projection.flatten(2).transpose(1, 2), part)


def test_positions_of_another_grid_follow_the_factor_and_not_the_size():
    dino = build()
    own = dino.model.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    by_factor = functional.interpolate(own, scale_factor=(7.1 / 4, 5.1 / 4), mode="bicubic")
    found = dino.resize_positions((7, 5)).transpose(1, 2).unflatten(2, (7, 5))
    torch.testing.assert_close(found, by_factor)
    by_size = functional.interpolate(own, size=(7, 5), mode="bicubic")
    assert (found - by_size).abs().max() > 0.01
    # As many cells as its own grid, but another shape.
    assert dino.resize_positions((2, 8)).shape == (1, 16, 24)


def test_registers_go_by_size_and_antialias():
    dino = build(REGISTERS)
    own = dino.model.pos_embed.transpose(1, 2).unflatten(2, (4, 4))
    expected = functional.interpolate(own, size=(2, 3), mode="bicubic", antialias=True)
    torch.testing.assert_close(dino.resize_positions((2, 3)), expected.flatten(2).transpose(1, 2))


def test_names_of_the_release_with_registers_give_the_same_features(tmp_path):
    dino, images = build(REGISTERS), torch.randn(1, 3, 40, 32)
    release = dict(dino.model.state_dict())
    row = torch.randn(1, 1, 24)
    release["register_tokens"] = release.pop("reg_token")
    release["cls_token"] = release["cls_token"] - row
    release["pos_embed"] = torch.cat([row, release["pos_embed"]], dim=1)
    release["mask_token"] = torch.zeros(1, 24)
    torch.save(release, tmp_path / "dino.pth")
    other = DINOSettings(REGISTERS, str(tmp_path / "dino.pth"), SIZES).build()
    torch.testing.assert_close(other(images), dino(images))


def test_what_timm_does_not_have_is_said_in_one_sentence():
    with pytest.raises(InputError, match=r"timm has no model 'vit_huge_dino'"):
        DINOSettings("vit_huge_dino").build()
    with pytest.raises(InputError, match="vision transformer with a class token"):
        DINO(timm.create_model("resnet18", pretrained=False))
    with pytest.raises(InputError, match="no weights file"):
        DINOSettings(pretrained="nowhere.pth", options=SIZES).build()
    with pytest.raises(InputError, match="do not fit"):
        load_dino(build(), build(depth=3).model.state_dict())


def test_found_reads_keys_and_pads_after_normalising():
    found = FOUND(build())
    torch.nn.init.normal_(found.decoder.weight)
    images = torch.rand(1, 3, 20, 27)
    normalized = functional.pad(found.dino.normalize(images), (0, 5, 0, 4))
    expected = found.decoder(found.dino.last_projections(normalized).key)
    torch.testing.assert_close(found(images), expected)
    saliency = found.saliency(images)
    assert saliency.shape == (1, 1, 20, 27)
    large = functional.interpolate(expected, scale_factor=8.0, mode="bilinear")[..., :20, :27]
    torch.testing.assert_close(saliency, large.sigmoid())


def test_found_takes_the_released_file_and_nothing_else(tmp_path):
    file = tmp_path / "decoder_weights.pt"
    torch.save({"decoder": {"weight": torch.ones(1, 24, 1, 1), "bias": torch.zeros(1)}}, file)
    found = FOUNDSettings(str(file), DINOSettings("vit_base_patch16_224.dino", None, SIZES)).build()
    assert (found.decoder.weight == 1).all()
    assert not any(parameter.requires_grad for parameter in found.parameters())
    with pytest.raises(InputError, match="no FOUND decoder"):
        load_decoder(found, {"weight": torch.ones(1, 24, 1, 1)})
    with pytest.raises(InputError, match="There is no FOUND decoder file"):
        FOUNDSettings("nowhere.pt", DINOSettings("vit_base_patch16_224.dino", None, SIZES)).build()
    with pytest.raises(InputError, match="released decoder"):
        FOUNDSettings().build()
