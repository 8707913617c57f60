"""`ovsl export`: a trained method with a fixed vocabulary as one ONNX file."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ovsl.clip import TextEmbeddings
from ovsl.errors import InputError
from ovsl.evaluation import Segmenter
from ovsl.inference import resize
from ovsl.methods.base import SegmentationModule
from ovsl.progress import busy
from ovsl.tools.models import model_parser, trained_model
from ovsl.vocabulary import Vocabulary, as_vocabulary

DESCRIPTION = """Write a trained method with a fixed vocabulary as one ONNX file, for devices without PyTorch.

The text embeddings are computed now and become constants; the text tower is not in the file. Input `image`: uint8 RGB
(1, 3, H, W) of the size given, to which images are resized before. Output `labels`: int64 (1, H, W), or `scores`:
float32 (1, C, H, W), both after the method's whole inference: windows, views, thresholds, refinement. The class names
are in the metadata entry `classes`. The file's output is compared with PyTorch's before the command ends. Methods that
go by region maps (CorrCLIP) cannot be written."""

Output = Literal["labels", "scores"]
TOLERANCE = 1e-3


class ExportedSegmenter(nn.Module):
    """A method with its words as one module: images in, maps out; the embeddings and seen marks are its constants.

    Args:
        module: The method.
        segmenter: The same with its words.
        output: What comes out.
    """

    vectors: Tensor
    class_index: Tensor
    seen: Tensor | None
    positions: Tensor | None

    def __init__(self, module: SegmentationModule, segmenter: Segmenter, output: Output = "labels") -> None:
        super().__init__()
        self.module = module
        self.segmenter = segmenter
        self.output = output
        text = segmenter.words.text
        self.num_classes = text.num_classes
        constants = {"vectors": text.vectors, "class_index": text.class_index, "seen": text.seen}
        for name, value in (constants | {"positions": segmenter.words.positions}).items():
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
    dataset: str | None = None,
) -> float:
    """Write a method as ONNX and compare what the file computes with PyTorch.

    Args:
        module: The method, trained.
        vocabulary: The classes, whose text embeddings become constants.
        path: The file to write.
        size: Height and width of the images; windows and views of that size become part of the file.
        output: `labels` or `scores`.
        opset: ONNX operator set.
        dataset: Name of an evaluation dataset for which the method may have an inference of its own.

    Returns:
        The largest difference of scores relative to the largest score; of labels, the share that differs.

    Raises:
        InputError: The export packages are not installed, the method or its inference cannot be written as ONNX, or the
            file computes something else than PyTorch.
    """
    if module.needs_regions:
        raise InputError(
            f"{module.method_name} cannot be exported: it merges the regions of a region map anew for every image, and "
            "an ONNX file has no such step; use `ovsl predict` or the Python API, which take region maps."
        )
    missing = [
        name for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InputError(f"The export needs {', '.join(missing)}; install them with: pip install 'ovsl[export]'.")
    import onnx  # type: ignore[import-not-found, unused-ignore]
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    module = module.cpu().eval()
    segmenter = module.segmenter(vocabulary, dataset)
    image = colored_patches(size)
    expected = segmenter_answer(segmenter, image, output)
    wrapped = ExportedSegmenter(module, module.segmenter(vocabulary, dataset), output).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad(), busy("Exporting"):
            warnings.simplefilter("ignore")
            logging.getLogger("onnxscript").setLevel(logging.ERROR)
            program = torch.onnx.export(
                wrapped, (image,), dynamo=True, opset_version=opset, input_names=["image"], output_names=[output],
                verbose=False, optimize=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(
            f"{module.method_name} with {type(segmenter.inference).__name__} cannot be exported: PyTorch cannot write "
            f"one of its steps as ONNX ({reason(error)}); choose another --model.inference or --opset."
        ) from error
    assert program is not None
    fold(program.model)
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", json.dumps(list(vocabulary.classes), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
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


def fold(model: Any) -> None:
    """Compute what is constant and drop what is unused.

    The exporter's own optimiser also looks for patterns, in a time that grows with the square of the nodes: minutes for
    PAMR. onnxruntime does so too whenever it loads a file.
    """
    from onnx_ir.passes import common  # type: ignore[import-not-found, unused-ignore]
    from onnxscript import optimizer  # type: ignore[import-not-found, unused-ignore]

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    common.DeduplicateInitializersPass()(model)


def segmenter_answer(segmenter: Segmenter, image: Tensor, output: Output) -> Tensor:
    """Segment as `ovsl test` does: what the file has to give."""
    with torch.no_grad():
        if output == "scores":
            return segmenter.scores(image)
        return segmenter(list(image), [(image.shape[-2], image.shape[-1])])[0].labels[None]


def colored_patches(size: tuple[int, int]) -> Tensor:
    """Make an image of soft patches of random colours, uint8 `(1, 3, H, W)`: noise has one label nearly everywhere."""
    height, width = (max(side // 32, 1) for side in size)
    colors = torch.randint(256, (1, 3, height, width), generator=torch.Generator().manual_seed(0))
    return resize(colors.float(), size).round().to(torch.uint8)


def reason(error: BaseException) -> str:
    """Say what an error was raised from, in its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0].rstrip(".")


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
    parser.add_argument(
        "--dataset",
        type=str | None,
        default=None,
        help="Evaluation dataset, where `model.inference_for` has one for it.",
    )
    config = parser.parse_args(None if args is None else list(args))
    if config.out.exists():
        raise InputError(f"{config.out} exists already; remove it, or give another name.")
    module = trained_model(parser, config)
    vocabulary = _vocabulary(config.vocabulary, module)
    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    difference = export(module, vocabulary, config.out, size, config.output, config.opset, config.dataset)
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
