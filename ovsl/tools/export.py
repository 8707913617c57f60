"""``ovsl export``: a trained method with a fixed vocabulary as one ONNX file."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ovsl.clip import TextEmbeddings
from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule
from ovsl.tools.models import build_model, load_checkpoint, model_parser
from ovsl.vocabulary import Vocabulary

DESCRIPTION = """Write a trained method with a fixed vocabulary as one ONNX file, for devices without PyTorch.

The text embeddings are computed now and become constants; the text tower is not in the file. Input `image`: uint8 RGB
(1, 3, H, W) of the size given. Output `labels`: int64 (1, H, W), or `scores`: float32 (1, C, H, W). The class names are
in the metadata entry `classes`. The file's output is compared with PyTorch's before the command ends."""

Output = Literal["labels", "scores"]
TOLERANCE = 1e-3


class FixedVocabulary(nn.Module):
    """A method with its vocabulary bound: images in, maps out.

    Args:
        module: The method.
        text: Text embeddings of the vocabulary.
        output: What comes out.
    """

    def __init__(self, module: SegmentationModule, text: TextEmbeddings, output: Output = "labels") -> None:
        super().__init__()
        self.module = module
        self.num_classes = text.num_classes
        self.output = output
        self.register_buffer("vectors", text.vectors.detach().clone())
        self.register_buffer("class_index", text.class_index.clone())
        self.vectors: Tensor
        self.class_index: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """uint8 ``(B, 3, H, W)`` -> labels ``(B, H, W)`` or scores ``(B, C, H, W)`` at the size of the image."""
        text = TextEmbeddings(self.vectors, self.class_index, self.num_classes)
        scores = self.module(image, text).semantic_scores((image.shape[-2], image.shape[-1]))
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
        output: ``labels`` or ``scores``.
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
    with torch.no_grad():
        text = module.text_classifier(vocabulary)
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    wrapped = FixedVocabulary(module, text, output).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            wrapped, (image,), dynamo=True, opset_version=opset, input_names=["image"], output_names=[output],
            verbose=False,
        )  # fmt: skip
        expected = wrapped(image)
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


def main(args: Sequence[str] | None = None) -> Path:
    """``ovsl export OUT.onnx -c RUN_DIR/config.yaml [--vocabulary WORDS] [--size 512]``."""
    parser = model_parser("ovsl export", DESCRIPTION)
    parser.add_argument("out", type=Path, help="The file to write.")
    parser.add_argument(
        "--vocabulary",
        type=list[str] | str | None,
        default=None,
        help="Words, or the name of a shipped vocabulary; default: what the checkpoint was trained on.",
    )
    parser.add_argument("--size", type=int | tuple[int, int], default=512, help="Side, or height and width.")
    parser.add_argument("--output", type=Output, default="labels", help="What the file gives.")
    parser.add_argument("--opset", type=int, default=18, help="ONNX operator set.")
    config = parser.parse_args(None if args is None else list(args))
    path, run_dir = config.ckpt_path, config.run_dir
    if path is None and run_dir is not None:
        path = Path(run_dir) / "checkpoints" / "last.ckpt"
    module = build_model(parser, config)
    if module.trainable:
        if path is None:
            raise InputError("Which weights to export? Give --ckpt_path FILE, or -c RUN_DIR/config.yaml.")
        load_checkpoint(module, Path(path))
    vocabulary = _vocabulary(config.vocabulary, module)
    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    difference = export(module, vocabulary, config.out, size, config.output, config.opset)
    print(
        f"{config.out}: {type(module).__name__}, {len(vocabulary)} classes, {size[0]}x{size[1]}, "
        f"{config.out.stat().st_size / 2**20:.1f} MiB; differs from PyTorch by {difference:.1e}."
    )
    return Path(config.out)


def _vocabulary(words: list[str] | str | None, module: SegmentationModule) -> Vocabulary:
    if isinstance(words, list):
        return Vocabulary.from_words(words)
    if words is not None:
        return Vocabulary.load(words)
    if module.training_vocabulary is None:
        raise InputError("The checkpoint does not say what it was trained on; give --vocabulary.")
    return module.training_vocabulary
