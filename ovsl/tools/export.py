"""`ovsl export`: a trained method with a fixed vocabulary as one ONNX file."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ovsl.clip import TextEmbeddings
from ovsl.errors import InputError
from ovsl.evaluation import Segmenter
from ovsl.inference import WholeImage
from ovsl.methods.base import SegmentationModule
from ovsl.tools.models import model_parser, trained_model
from ovsl.vocabulary import Vocabulary, as_vocabulary

DESCRIPTION = """Write a trained method with a fixed vocabulary as one ONNX file, for devices without PyTorch.

The text embeddings are computed now and become constants; the text tower is not in the file. Input `image`: uint8 RGB
(1, 3, H, W) of the size given. Output `labels`: int64 (1, H, W), or `scores`: float32 (1, C, H, W). The class names are
in the metadata entry `classes`. The file's output is compared with PyTorch's before the command ends."""

Output = Literal["labels", "scores"]
TOLERANCE = 1e-3


class ExportedSegmenter(nn.Module):
    """A method with its words as one module: images in, maps out; the embeddings and seen marks are its constants.

    Args:
        module: The method.
        vocabulary: The classes.
        output: What comes out.
    """

    vectors: Tensor
    class_index: Tensor
    seen: Tensor | None
    positions: Tensor | None

    def __init__(self, module: SegmentationModule, vocabulary: Vocabulary, output: Output = "labels") -> None:
        super().__init__()
        self.module = module
        self.output = output
        # The image goes in at the size that was asked for: no windows, no views.
        self.segmenter = Segmenter(module, vocabulary, WholeImage())
        text = self.segmenter.words.text
        self.num_classes = text.num_classes
        constants = {"vectors": text.vectors, "class_index": text.class_index, "seen": text.seen}
        for name, value in (constants | {"positions": self.segmenter.words.positions}).items():
            self.register_buffer(name, None if value is None else value.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        """Map uint8 `(B, 3, H, W)` to labels `(B, H, W)` or scores `(B, C, H, W)` at the size of the image."""
        text = TextEmbeddings(self.vectors, self.class_index, self.num_classes, self.seen)
        self.segmenter.words = replace(self.segmenter.words, text=text, positions=self.positions)
        scores = self.segmenter.scores(image)
        return scores.argmax(dim=1) if self.output == "labels" else scores


def export(
    module: SegmentationModule,
    vocabulary: Vocabulary,
    path: Path,
    size: tuple[int, int] = (512, 512),
    output: Output = "labels",
    opset: int = 18,
) -> float:
    """Write a method as ONNX and compare what the file computes with PyTorch.

    Args:
        module: The method, trained.
        vocabulary: The classes, whose text embeddings become constants.
        path: The file to write.
        size: Height and width of the images.
        output: `labels` or `scores`.
        opset: ONNX operator set.

    Returns:
        The largest difference of scores relative to the largest score.

    Raises:
        InputError: The export packages are not installed, or the file computes something else than PyTorch.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"The export needs {', '.join(missing)}; install them with: pip install 'ovsl[export]'.")
    import onnx  # type: ignore[import-not-found, unused-ignore]
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    module = module.cpu().eval()
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        wrapped = ExportedSegmenter(module, vocabulary, output).eval()
    expected = module_answer(module, vocabulary, image, output)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            wrapped, (image,), dynamo=True, opset_version=opset, input_names=["image"], output_names=[output],
            verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", json.dumps(list(vocabulary.classes), ensure_ascii=False)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    if output == "labels":
        # Scores that tie to the last bits may fall to either class.
        difference = float((found != expected).float().mean())
    else:
        difference = float((found - expected).abs().max() / expected.abs().max())
    if difference > TOLERANCE:
        raise InputError(
            f"{path} does not compute what PyTorch does (difference {difference:.1e}); try another --opset, and report "
            "the method and its settings."
        )
    return difference


def module_answer(module: SegmentationModule, vocabulary: Vocabulary, image: Tensor, output: Output) -> Tensor:
    """Segment as `ovsl test` does, apart from windows and views: what the file has to give."""
    segmenter = Segmenter(module, vocabulary, WholeImage())
    with torch.no_grad():
        if output == "scores":
            return segmenter.scores(image)
        return torch.stack(
            [found.labels for found in segmenter(list(image), [(image.shape[-2], image.shape[-1])] * len(image))]
        )


def main(args: Sequence[str] | None = None) -> Path:
    """`ovsl export OUT.onnx -c RUN_DIR/config.yaml [--vocabulary WORDS] [--size 512]`."""
    parser = model_parser("ovsl export", DESCRIPTION)
    parser.add_argument("out", type=Path, help="The file to write.")
    parser.add_argument(
        "--vocabulary",
        type=list[str] | str | None,
        default=None,
        help="Words, a vocabulary file, or a shipped name; default: what the checkpoint was trained on.",
    )
    parser.add_argument("--size", type=int | tuple[int, int], default=512, help="Side, or height and width.")
    parser.add_argument("--output", type=Output, default="labels", help="What the file gives.")
    parser.add_argument("--opset", type=int, default=18, help="ONNX operator set.")
    config = parser.parse_args(None if args is None else list(args))
    module = trained_model(parser, config)
    vocabulary = _vocabulary(config.vocabulary, module)
    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    difference = export(module, vocabulary, config.out, size, config.output, config.opset)
    print(
        f"{config.out}: {type(module).__name__}, {len(vocabulary)} classes, {size[0]}x{size[1]}, "
        f"{config.out.stat().st_size / 2**20:.1f} MiB; differs from PyTorch by {difference:.1e}."
    )
    return Path(config.out)


def _vocabulary(words: list[str] | str | None, module: SegmentationModule) -> Vocabulary:
    if words is not None:
        module.use_own_words()
        return as_vocabulary(words)
    if module.training_vocabulary is None:
        raise InputError("The checkpoint does not say what it was trained on; give --vocabulary.")
    return module.training_vocabulary
