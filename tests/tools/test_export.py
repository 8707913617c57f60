"""``ovsl export``: one file that computes what PyTorch does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ovsl.clip import CLIPSettings
from ovsl.errors import InputError
from ovsl.inference import (
    PAMR,
    Inference,
    MultiScale,
    NearestLabels,
    SlidingWindow,
    WholeImage,
    WordInference,
    WordRules,
)
from ovsl.methods import TrainingFree
from ovsl.methods.cat_seg.inference import StretchedWholeImage, WindowsAndGlobalView
from ovsl.methods.clip_lightweight import CLIPLightweight, CLIPLightweightSizes
from ovsl.methods.lseg.multi_scale_sum import MultiScaleSum
from ovsl.tools import export
from ovsl.vocabulary import Vocabulary
from tests.conftest import TINY_CLIP

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

WORDS = Vocabulary.from_words(["road", "sky", "car"])
SETTINGS: dict[str, Any] = {
    "clip": {"model": "tiny", "config": TINY_CLIP},
    "templates": "photo_of",
    "backbone": "resnet18",
    "backbone_options": {"channels": [8, 8, 16, 24]},
    "sizes": {"width": 32, "token_width": 24, "fpn_width": 16, "head_width": 16},
}


@pytest.fixture
def module() -> CLIPLightweight:
    torch.manual_seed(0)
    sizes = CLIPLightweightSizes(**SETTINGS["sizes"])
    module = CLIPLightweight(**{**SETTINGS, "clip": CLIPSettings("tiny", config=TINY_CLIP), "sizes": sizes})
    module.training_vocabulary = WORDS
    return module


def test_the_file_computes_what_pytorch_does(module: CLIPLightweight, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert export.export(module, WORDS, path, (64, 96), "scores") < 1e-4
    session = onnxruntime.InferenceSession(path)
    image = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)
    (found,) = session.run(["scores"], {"image": image.numpy()})
    with torch.no_grad():
        expected = module(image, module.text_classifier(WORDS)).semantic_scores((64, 96))
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["road", "sky", "car"]
    # The text tower stays at home: its token embedding alone would be larger than the file.
    assert path.stat().st_size < 4 * TINY_CLIP["text_cfg"]["vocab_size"] * TINY_CLIP["text_cfg"]["width"]


INFERENCES = [
    SlidingWindow(crop_size=48, stride=32, window_batch_size=2),
    *(
        pytest.param(inference, marks=pytest.mark.slow)
        for inference in (
            MultiScale(scales=(0.5, 1.0)),
            MultiScaleSum(base_size=64, crop_size=48, scales=(1.0,)),
            NearestLabels(),
            StretchedWholeImage(),
            WindowsAndGlobalView(image_size=64, crop_size=48),
        )
    ),
]


@pytest.mark.parametrize("inference", INFERENCES, ids=lambda inference: type(inference).__name__)
def test_windows_and_views_are_in_the_file(module: CLIPLightweight, tmp_path: Path, inference: Inference) -> None:
    """The file says what the segmenter says with the same inference, and not with another."""
    module.inference = inference
    path = tmp_path / "model.onnx"
    assert export.export(module, WORDS, path, (60, 90), "scores") < 1e-4
    image = torch.randint(256, (1, 3, 60, 90), dtype=torch.uint8)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"image": image.numpy()})
    with torch.no_grad():
        expected = module.segmenter(WORDS).scores(image)
        module.inference = WholeImage()
        whole = module.segmenter(WORDS).scores(image)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)
    assert (expected - whole).abs().max() > 2e-3


def test_rules_for_words_are_in_the_file(tmp_path: Path) -> None:
    """Several words of a class, both thresholds and the refinement; those of a dataset where it has its own."""
    torch.manual_seed(0)
    rules = WordRules(logit_scale=40.0, probability_threshold=0.3, area_threshold=0.2)
    inference = WordInference(SlidingWindow(48, 24), rules, PAMR(steps=2, dilations=(1, 4)))
    module = TrainingFree(
        clip=CLIPSettings("tiny", config=TINY_CLIP),
        templates="photo_of",
        class_names=None,
        inference=WholeImage(),
        inference_for={"street": inference},
    )
    words = Vocabulary.from_words(["background, wall", "car, van", "tree", "road"])
    answers = {}
    for dataset in ("street", None):
        path = tmp_path / f"{dataset}.onnx"
        assert export.export(module, words, path, (64, 80), dataset=dataset) < 1e-3
        image = export.colored_patches((64, 80)).flip(-1)
        (found,) = onnxruntime.InferenceSession(path).run(None, {"image": image.numpy()})
        with torch.no_grad():
            (expected,) = module.segmenter(words, dataset)([image[0]], [(64, 80)])
        assert (torch.from_numpy(found[0]) == expected.labels).float().mean() > 0.999
        answers[dataset] = found
    assert len(set(answers["street"].flatten())) > 1, "a map of one label proves little"
    assert (answers["street"] != answers[None]).mean() > 0.05


def test_a_step_that_onnx_lacks_is_told_in_a_sentence(module: CLIPLightweight, tmp_path: Path) -> None:
    class Sampled(WholeImage):
        """Decides by what it sees which words count."""

        def scores(self, predict: Any, images: torch.Tensor, original_size: Any = None) -> torch.Tensor:
            scores = super().scores(predict, images, original_size)
            return scores if scores.numpy().max() > 0 else -scores

    module.inference = Sampled()
    with pytest.raises(
        InputError, match=r"CLIPLightweight with Sampled cannot be exported: .* choose another --model.inf"
    ):
        export.export(module, WORDS, tmp_path / "model.onnx", (64, 64))
    assert not (tmp_path / "model.onnx").exists()


def test_a_run_is_exported_by_its_configuration(
    module: CLIPLightweight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A closed list of other words than the checkpoint's, by command."""
    torch.manual_seed(1)
    for parameter in module.network.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    checkpoint = {"state_dict": module.state_dict(), "global_step": 3}
    module.on_save_checkpoint(checkpoint)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "run/checkpoints/last.ckpt")
    config = {"model": {"class_path": "ovsl.methods.CLIPLightweight", "init_args": SETTINGS}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "run_dir": str(tmp_path / "run")}))
    torch.manual_seed(0)  # the tiny CLIP is random: the same one again
    words = ["--vocabulary", '["car", "tree"]', "--size", "64"]
    path = export.main([str(tmp_path / "out.onnx"), "-c", str(tmp_path / "config.yaml"), *words])
    assert "2 classes, 64x64" in capsys.readouterr().out
    image = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    (labels,) = onnxruntime.InferenceSession(path).run(["labels"], {"image": image.numpy()})
    with torch.no_grad():
        module.eval()
        text = module.text_classifier(Vocabulary.from_words(["car", "tree"]))
        expected = module(image, text).semantic_scores((64, 64)).argmax(1)
    assert (torch.from_numpy(labels) == expected).float().mean() > 0.999


def test_untrained_weights_are_not_exported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "ovsl.methods.CLIPLightweight", "init_args": SETTINGS}})
    )
    with pytest.raises(InputError, match="Which weights"):
        export.main([str(tmp_path / "out.onnx"), "-c", str(tmp_path / "config.yaml")])
    with pytest.raises(InputError, match="There is no checkpoint"):
        export.main([str(tmp_path / "o.onnx"), "-c", str(tmp_path / "config.yaml"), "--ckpt_path", "none.ckpt"])


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"dear")
    (tmp_path / "config.yaml").write_text("model: {class_path: ovsl.methods.MaskCLIP}")
    with pytest.raises(InputError, match="exists already"):
        export.main([str(tmp_path / "model.onnx"), "-c", str(tmp_path / "config.yaml")])
    assert (tmp_path / "model.onnx").read_bytes() == b"dear"
