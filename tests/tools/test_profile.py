from pathlib import Path

import pytest
import torch

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.evaluation import Segmenter
from ovsl.inference import WholeImage
from ovsl.methods import FCCLIP, SAN, SegmentationModule, ZegCLIP
from ovsl.methods.zegclip import ZegCLIPSizes
from ovsl.tools import profile as tool
from ovsl.tools.models import forget_weights, model_parser
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT


def random_segmenter(model: SegmentationModule, num_classes: int) -> Segmenter:
    words = Vocabulary.from_words([f"class {number}" for number in range(num_classes)])
    return Segmenter(tool.RandomText(model), words, WholeImage())


@pytest.mark.parametrize(("num_prompts", "classes", "published"), [(10, 20, 110.4), (100, 171, 123.9)])
def test_published_multiply_adds_of_zegclip(num_prompts: int, classes: int, published: float) -> None:
    with torch.device("meta"):
        model = ZegCLIP(
            clip=CLIPSettings("ViT-B-16", "random", quick_gelu=True), sizes=ZegCLIPSizes(num_prompts)
        ).eval()
        images = torch.empty(1, 3, 512, 512, dtype=torch.uint8)
    segmenter = random_segmenter(model, classes)
    found = tool.count_multiply_adds(lambda: tool.scores_at_original_size(segmenter, images))
    assert round(found / 1e9, 1) == published


@pytest.mark.parametrize(("literal", "published"), [(True, 63.25), (False, 59.28)])
def test_multiply_adds_of_san_are_those_of_the_release(literal: bool, published: float) -> None:
    """The default form does less for the same result, and the published figure is still told."""
    with torch.device("meta"):
        model = SAN(clip=CLIPSettings("ViT-B-16", "random", quick_gelu=True)).eval()
        images = torch.empty(1, 3, 640, 640, dtype=torch.uint8)
        text = random_segmenter(model, 171).words.text
        network = model.released_network if literal else model
        with torch.no_grad():
            found = tool.count_multiply_adds(lambda: network(images, text), norms_and_resizes=False)
    assert round(found / 1e9, 2) == published


@pytest.mark.parametrize(
    ("size", "clip", "published"),
    [
        ((1024, 1024), CLIPSettings("convnext_large_d_320", "random"), 967.6),
        ((800, 1216), CLIPSettings("convnext_large_d_320", "random"), 898.1),
        ((1024, 1024), CLIPSettings("RN50", "random", quick_gelu=True), 364.1),
    ],
)
def test_multiply_adds_of_fc_clip_are_those_of_the_release(
    size: tuple[int, int], clip: CLIPSettings, published: float
) -> None:
    with torch.device("meta"):
        model = FCCLIP(clip=clip).eval()
        images = torch.empty(1, 3, *size, dtype=torch.uint8)
        # The 133 classes of COCO panoptic have 254 names.
        names = TextEmbeddings(torch.empty(254, model.clip.embedding_dimension), torch.arange(254) % 133, 133)
        with torch.no_grad():
            found = tool.count_multiply_adds(lambda: model.released_network(images, names), norms_and_resizes=False)
    assert round(found / 1e9, 1) == published


def test_operations_are_counted_by_their_definition() -> None:
    linear, norm = torch.nn.Linear(8, 4), torch.nn.LayerNorm(8)
    values = torch.randn(3, 8)
    assert tool.count_multiply_adds(lambda: linear(norm(values))) == 3 * 8 * 4 + 5 * 3 * 8
    query = torch.randn(1, 2, 5, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert tool.count_multiply_adds(lambda: attention(query, query, query)) == 2 * 2 * 5 * 5 * 16


CONFIG = """
model:
  class_path: {method}
  init_args:
    clip:
      model: tiny
      pretrained: {pretrained}
      quick_gelu: true
      config:
        embed_dim: 16
        vision_cfg: {{layers: 2, width: 24, head_width: 8, patch_size: 4, image_size: 16}}
        text_cfg: {{context_length: 77, vocab_size: 100, width: 8, heads: 1, layers: 1}}
data: {{batch_size: 3}}
"""


@pytest.mark.parametrize("method", ["ZegCLIP", "MaskCLIP"])
def test_any_method_is_profiled_from_its_configuration(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "method.yaml"
    path.write_text(CONFIG.format(method=method, pretrained="none.pt"))
    arguments = ["-c", str(path), "--random_weights", "--size", "32", "--repeats", "2", "--device", "cpu"]
    few = tool.main([*arguments, "--classes", "2"])
    many = tool.main([*arguments, "--classes", "9"])
    assert few.multiply_adds < many.multiply_adds
    assert few.network_multiply_adds < few.multiply_adds
    assert (few.trainable > 0) == (method == "ZegCLIP")
    assert few.trainable + few.text_parameters < few.parameters
    assert few.latency > 0
    assert few.peak_memory > 2**20
    assert "multiply-adds" in capsys.readouterr().out


def test_random_weights_reach_what_stands_beside_the_clip() -> None:
    for name, part in (("training_free/corrclip", "last_block.init_args.proxy.init_args.settings.pretrained"),
                       ("lseg/ade20k_vit_l_16", "backbone_pretrained")):  # fmt: skip
        config = model_parser("test", "").parse_args(["-c", str(ROOT / f"experiments/{name}.yaml")])
        assert config.model.init_args[part]
        forget_weights(config)
        assert not config.model.init_args[part]
        assert config.model.init_args.clip.pretrained == "random"
