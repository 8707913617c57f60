"""`ovsl profile`: parameters, multiply-adds, latency and peak memory of any method."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ovsl.clip import TextEmbeddings
from ovsl.evaluation import Segmenter, Words
from ovsl.inference import Prediction, WholeImage
from ovsl.methods.base import SegmentationModule
from ovsl.progress import busy
from ovsl.tools.models import build_model, forget_weights, model_parser
from ovsl.vocabulary import Vocabulary

aten = torch.ops.aten

DESCRIPTION = """Print the size and the cost of a method.

Multiply-adds are those of one image: the network with all classes as queries, the text tower left out (its embeddings
are computed once per vocabulary). The first figure counts linear layers, convolutions, attention, sampled weighted sums
and other products, of the network as the official code runs it; the second is that of inference here, with layer norms
(5 per element) and what brings class scores to the size of the image (4 per element of a resize). Publications differ:
ZegCLIP's figures are of the second kind, SAN's and FC-CLIP's of the first."""


@dataclass(frozen=True)
class Profile:
    """What a method costs.

    Attributes:
        parameters: All parameters, the CLIP with both towers included.
        trainable: Those that train.
        text_parameters: Those of the text tower, which runs once per vocabulary.
        network_multiply_adds: Of one image through the network as released: matrix products, convolutions, attention.
        multiply_adds: Of one image through inference here, layer norms and scores at the size of the image included.
        latency: Median seconds of one batch, from uint8 images to class scores at their size.
        peak_memory: Bytes; on a GPU of the allocator's peak, on a CPU of the process.
        size: Side of the image.
        num_classes: Number of classes.
        batch_size: Images in a batch.
        device: Where it was measured.
    """

    parameters: int
    trainable: int
    text_parameters: int
    network_multiply_adds: int
    multiply_adds: int
    latency: float
    peak_memory: int
    size: int
    num_classes: int
    batch_size: int
    device: str

    def __str__(self) -> str:
        rows = (
            ("parameters", f"{self.parameters:,} (text tower {self.text_parameters:,})"),
            ("trainable", f"{self.trainable:,}"),
            (
                "multiply-adds",
                f"{self.network_multiply_adds / 1e9:.2f} G ({self.size}x{self.size}, {self.num_classes} classes)",
            ),
            ("of inference here", f"{self.multiply_adds / 1e9:.2f} G (layer norms, class scores at the image's size)"),
            ("latency", f"{self.latency * 1e3:.1f} ms (batch of {self.batch_size}, {self.device})"),
            ("images per second", f"{self.batch_size / self.latency:.2f}"),
            ("peak memory", f"{self.peak_memory / 2**20:.0f} MiB"),
        )
        return "\n".join(f"{name:<18} {value}" for name, value in rows)


def profile(
    model: SegmentationModule,
    size: int = 512,
    classes: int = 150,
    batch_size: int = 1,
    repeats: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> Profile:
    """Measure a method on random images and random text embeddings.

    Args:
        model: The method.
        size: Side of the square image in pixels.
        classes: Number of classes.
        batch_size: Images in a batch, for latency and memory.
        repeats: Batches whose median latency is reported.
        device: `cpu`, `cuda` or `cuda:1`.
    """
    model = model.to(device).eval()
    words = Vocabulary.from_words([f"class {number}" for number in range(classes)])
    segmenter = Segmenter(RandomText(model), words, WholeImage())
    text = segmenter.words.text
    image = torch.randint(256, (1, 3, size, size), dtype=torch.uint8, device=device)
    with torch.no_grad():
        network = functools.partial(model.released_network, image, text, *tiles(model, image))
        network_multiply_adds = count_multiply_adds(network, norms_and_resizes=False)
    multiply_adds = count_multiply_adds(lambda: scores_at_original_size(segmenter, image))
    images = image.expand(batch_size, -1, -1, -1)
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats(images.device)
    latency = _median_seconds(lambda: scores_at_original_size(segmenter, images), repeats, images.is_cuda)
    return Profile(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        text_parameters=sum(p.numel() for n, p in model.clip.model.named_parameters() if not n.startswith("visual.")),
        network_multiply_adds=network_multiply_adds,
        multiply_adds=multiply_adds,
        latency=latency,
        peak_memory=_peak_memory(images.device),
        size=size,
        num_classes=classes,
        batch_size=batch_size,
        device=torch.cuda.get_device_name(images.device) if images.is_cuda else "CPU",
    )


class RandomText:
    """A method whose words have random unit embeddings, one row each: costs do not depend on what they mean.

    Args:
        model: The method.
    """

    def __init__(self, model: SegmentationModule) -> None:
        self.model = model
        self.predicts_masks = model.predicts_masks
        self.needs_regions = model.needs_regions

    def __call__(self, images: Tensor, text: TextEmbeddings, *regions: Tensor) -> Prediction:
        """Segment as the method does."""
        prediction: Prediction = self.model(images, text, *(regions or tiles(self.model, images)))
        return prediction

    def words(self, vocabulary: Vocabulary) -> Words:
        """Draw an embedding for each class."""
        device, count = self.model.clip.mean.device, len(vocabulary)
        vectors = functional.normalize(torch.randn(count, self.model.clip.embedding_dimension, device=device), dim=1)
        return Words(vocabulary, TextEmbeddings(vectors, torch.arange(count, device=device), count))


def tiles(model: SegmentationModule, images: Tensor) -> tuple[Tensor, ...]:
    """Give region maps of 4 x 4 tiles, the first of them uncovered, to a method that goes by regions."""
    if not model.needs_regions:
        return ()
    rows, columns = (torch.arange(side, device=images.device) * 4 // side for side in images.shape[-2:])
    return ((rows[:, None] * 4 + columns).expand(len(images), -1, -1),)


@torch.no_grad()
def scores_at_original_size(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Compute class scores as evaluation needs them: at the size of the input, then at that of the original image.

    The original is taken to be as large as the input; the second resize is done all the same, as it is for any other
    original (and in the published figures).
    """
    size = (images.shape[-2], images.shape[-1])
    scores = segmenter.scores(images)
    return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def count_multiply_adds(function: Callable[[], Any], norms_and_resizes: bool = True) -> int:
    """Multiply-adds of a call: matrix products, convolutions, attention, and weighted sums of sampled points.

    Args:
        function: What is counted.
        norms_and_resizes: Whether layer norms and bilinear resizes count as well.
    """
    custom: dict[Any, Any] = {aten.grid_sampler_2d: _sampling_flops}
    if norms_and_resizes:
        custom |= {aten.native_layer_norm: _layer_norm_flops, aten.upsample_bilinear2d: _bilinear_flops}
    # The fused attention kernels differ by device, and not all of them are known to the counter.
    with FlopCounterMode(display=False, custom_mapping=custom) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return int(counter.get_total_flops()) // 2


def _sampling_flops(*args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    # Deformable attention weights each sampled value once; the interpolation itself is left out, as in publications.
    return 2 * torch.Size(out_shape).numel()


def _layer_norm_flops(input_shape: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * 5 * input_shape.numel()


def _bilinear_flops(*args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return 2 * 4 * torch.Size(out_shape).numel()


def _median_seconds(function: Callable[[], Any], repeats: int, synchronize: bool) -> float:
    seconds = []
    for _ in range(repeats + 1):
        if synchronize:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if synchronize:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    # The first call pays for allocation and kernel selection.
    return sorted(seconds[1:])[repeats // 2]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(args: Sequence[str] | None = None) -> Profile:
    """`ovsl profile -c configs/methods/zegclip.yaml [--size 512] [--classes 171] [--random_weights]`."""
    parser = model_parser("ovsl profile", DESCRIPTION)
    parser.add_function_arguments(profile, skip={"model"}, as_group=False)
    parser.add_argument(
        "--random_weights",
        type=bool,
        default=False,
        nargs="?",
        const=True,
        help="Do without pretrained weights; costs and sizes do not depend on them.",
    )
    config = parser.parse_args(None if args is None else list(args))
    if config.random_weights:
        forget_weights(config)
    options = {key: config[key] for key in ("size", "classes", "batch_size", "repeats", "device")}
    with busy("Profiling"):
        result = profile(build_model(parser, config), **options)
    print(result)
    return result
