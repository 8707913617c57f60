import pytest
import torch
from torch.nn import functional

from ovsl.clip.image_tower import open_tower
from ovsl.clip.toy import load_toy_clip, save_toy_clip
from ovsl.data.toy import CLASSES
from ovsl.data.toy_captions import ToyCaptionData
from ovsl.layers import ImageNormalization
from ovsl.pretraining import ToyCLIPPretraining


def _tiny_training(tmp_path, vision):
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 128, **vision}, "text_cfg": text}
    return ToyCLIPPretraining("tiny", config, tmp_path, captions_per_batch=8)


@pytest.mark.parametrize(
    "vision",
    [
        {"patch_size": 32, "width": 32, "layers": 2, "head_width": 16},
        {"timm_model_name": "test_convnext2", "timm_pool": "", "timm_proj": "linear"},
    ],
    ids=["vit", "convnext"],
)
def test_training_features_are_those_of_the_shipped_forward(tmp_path, vision):
    torch.manual_seed(0)
    training = _tiny_training(tmp_path, vision).eval()
    save_toy_clip(
        "tiny", tmp_path, training.clip.state_dict(), training.token_ids, training.config, (0.5,) * 3, (0.2,) * 3
    )
    toy = load_toy_clip("tiny", tmp_path)
    training.normalize = ImageNormalization((0.5,) * 3, (0.2,) * 3)
    image = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    pixels = (image / 255 - 0.5) / 0.2
    words = ["a photo of a striped ring on grass", "the brick wall"]
    with torch.no_grad():
        pooled, dense = training.encode_image(image)
        tower = open_tower(toy.model.visual)
        assert tower is not None
        expected = tower.dense_features(pixels)
        # The files hold half precision.
        tolerance = {"atol": 5e-3, "rtol": 0}
        torch.testing.assert_close(dense, functional.normalize(expected, dim=1), **tolerance)
        torch.testing.assert_close(pooled, toy.model.encode_image(pixels, normalize=True), **tolerance)
        text = toy.model.encode_text(training.tokenizer(words), normalize=True)
        torch.testing.assert_close(training.encode_text(words), text, **tolerance)


def test_local_losses_ask_patches_for_their_caption(tmp_path, monkeypatch):
    torch.manual_seed(0)
    training = _tiny_training(tmp_path, {"patch_size": 32, "width": 32, "layers": 2, "head_width": 16})
    training.templates = ("{}",)
    training.clip.logit_scale.data.fill_(3.0)
    # Class vectors far from each other, so that the outcome is the losses' doing and not the random tower's.
    vectors = torch.eye(len(CLASSES))
    monkeypatch.setattr(training, "encode_text", lambda texts: torch.cat([vectors[: len(texts) - 40], vectors]))
    present = torch.zeros(1, len(CLASSES), dtype=torch.bool)
    present[0, [3, 37]] = True
    batch = {"image": torch.zeros(1), "caption": ["a red ring on sand"], "present": present}

    def losses(*patches):
        dense = vectors[list(patches)].T[None, :, None]
        monkeypatch.setattr(training, "encode_image", lambda image: (dense.mean((2, 3)), dense))
        return {key: value.item() for key, value in training.losses(batch).items()}

    both, background, foreign = losses(3, 37, 37, 37), losses(37, 37, 37, 37), losses(3, 37, 5, 5)
    assert both["partial"] == pytest.approx(background["partial"], abs=0.01), "any class of the caption will do"
    assert foreign["partial"] > both["partial"] + 1
    assert background["instance"] > both["instance"] + 1, "a phrase without a patch"
    assert foreign["instance"] == pytest.approx(both["instance"], abs=0.01), "one patch is enough"


def test_batches_are_a_function_of_seed_and_number():
    stream = ToyCaptionData(scene_batch_size=3, view_batch_size=4, views_first=2).stream
    first = [batch for _, batch in zip(range(4), stream, strict=False)]
    assert [tuple(batch["image"].shape) for batch in first] == [(4, 3, 64, 64)] * 2 + [(3, 3, 128, 128), (4, 3, 64, 64)]
    again = stream.batch(2)
    assert again["caption"] == first[2]["caption"]
    torch.testing.assert_close(again["image"], first[2]["image"])
    for caption, present in zip(again["caption"], again["present"], strict=True):
        assert all(CLASSES[i] in caption for i in present.nonzero().flatten().tolist())
    assert not torch.equal(first[0]["image"], first[1]["image"])
