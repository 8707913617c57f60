"""`ovsl convert`: checkpoints of the official releases -> ours.

A method takes part by its `official.py`: `convert(state_dict, module)` loads an official state dict into a freshly
built module and raises `InputError` at anything missing or left over; `settings(state_dict)`, if
it is there, gives `init_args`, `vocabulary` and `split` of the published checkpoints.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import lightning
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import ovsl.methods
from ovsl.clip.split_attention import pack_attention
from ovsl.data.sources import one_line
from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule
from ovsl.progress import busy
from ovsl.runs.record import save_checkpoint_file
from ovsl.tools.models import build_model, forget_clip_weights, model_parser, model_settings
from ovsl.vocabulary import Vocabulary, as_vocabulary

DESCRIPTION = """Turn a checkpoint of an official release into one that `ovsl validate|test|predict --ckpt_path` takes.

Every tensor is accounted for: loaded, compared with the frozen CLIP, or dropped by a rule that names it. Published
checkpoints need no -c; others are described by the configuration of the method."""


def convert(
    module: SegmentationModule,
    state_dict: Mapping[str, Tensor],
    settings: dict[str, Any],
    vocabulary: Vocabulary | None,
) -> dict[str, Any]:
    """Load an official state dict into a module and make a checkpoint of it.

    Args:
        module: Freshly built, with the settings of the release.
        state_dict: The official `state_dict`.
        settings: `class_path` and `init_args` of the module, recorded in the checkpoint.
        vocabulary: What the release was trained on.

    Returns:
        A Lightning checkpoint.
    """
    _official(_folder(type(module))).convert(state_dict, module)
    module.training_vocabulary = vocabulary
    module.settings = settings
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
    }
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def read_state_dict(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Tensors of a `.pth`, `.ckpt` or `.safetensors` file.

    Args:
        path: The file.
        trust: Also unpickle Python objects, which can run any code.

    Raises:
        InputError: No such file, no tensors in it, or a pickle that is not trusted.
    """
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r} to convert.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read ({one_line(error)}): it may be cut short.") from error
    with path.open("rb") as file:
        start = file.read(2)
    if not (start == b"PK" or start[:1] == b"\x80"):
        raise InputError(f"{path} is no checkpoint: neither PyTorch's (.pth, .pt, .ckpt) nor .safetensors.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        if trust:
            raise InputError(f"{path} cannot be read as a checkpoint ({one_line(error)}).") from error
        raise InputError(
            f"{path} holds Python objects besides tensors, which can run code when loaded; if you trust its source, "
            "add --trust."
        ) from error
    except Exception as error:  # zip and pickle raise a dozen unrelated types on a broken file
        raise InputError(f"{path} cannot be read ({one_line(error)}): it may be cut short.") from error
    for key in ("state_dict", "model_state_dict", "model"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds no state dict.")
    return {name: torch.as_tensor(value) for name, value in content.items() if not isinstance(value, str)}


def main(args: Sequence[str] | None = None) -> Path:
    """`ovsl convert zegclip FILE OUT [-c CONFIG] [--vocabulary NAME --split SPLIT] [--clip_from_release]`."""
    methods = convertible_methods()
    parser = model_parser("ovsl convert", DESCRIPTION, required=False)
    parser.add_argument("method", type=str, help=f"One of: {', '.join(methods)}.")
    parser.add_argument("file", type=Path, help="The official checkpoint.")
    parser.add_argument("out", type=Path, help="The checkpoint to write.")
    parser.add_argument(
        "--vocabulary", type=list[str] | str | None, default=None, help="Classes that the release was trained on."
    )
    parser.add_argument("--split", type=str | None, default=None, help="Zero-shot split of that vocabulary.")
    flag: dict[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--trust", help="Unpickle Python objects of the file, which can run code.", **flag)
    parser.add_argument(
        "--clip_from_release",
        help="Take the CLIP weights from the release, where it holds them, and write them beside OUT.",
        **flag,
    )
    config = parser.parse_args(None if args is None else list(args))
    if config.method not in methods:
        raise InputError(f"There is no official release of {config.method!r} to convert; known: {', '.join(methods)}.")
    out: Path = config.out
    if out.exists():
        raise InputError(f"{out} exists already; remove it, or give another name.")
    with busy(f"Reading {config.file}"):
        state_dict = read_state_dict(config.file, config.trust)
    vocabulary_name, split = config.vocabulary, config.split
    if config.model is None:
        published = _published_settings(config.method, state_dict)
        vocabulary_name, split = vocabulary_name or published["vocabulary"], split or published["split"]
        model = {"class_path": f"ovsl.methods.{methods[config.method].__name__}", "init_args": published["init_args"]}
        config.update(parser.parse_object({**config.as_dict(), "model": model}))
    if config.clip_from_release:
        clip = config.model.init_args.clip
        quick_gelu = clip.pretrained == "openai" if clip.quick_gelu is None else clip.quick_gelu
        forget_clip_weights(config)
        clip.quick_gelu = quick_gelu
    settings = model_settings(parser, config)
    vocabulary = None if vocabulary_name is None else as_vocabulary(vocabulary_name, split)
    with busy(f"Building {config.model.class_path.rpartition('.')[2]}"):
        module = build_model(parser, config)
    if not isinstance(module, methods[config.method]):
        raise InputError(f"The configuration is for {type(module).__name__}, not for {config.method!r}.")
    with busy(f"Converting {len(state_dict)} tensors"):
        checkpoint = convert(module, state_dict, settings, vocabulary)
    out.parent.mkdir(parents=True, exist_ok=True)
    with busy(f"Writing {out}"):
        if config.clip_from_release:
            _write_clip(module, out.with_suffix(".clip.safetensors"), checkpoint)
        save_checkpoint_file(checkpoint, out)
    seen = "unknown" if vocabulary is None else f"{vocabulary.name}, {len(vocabulary.seen_indices)} classes seen"
    print(f"{out}: {len(checkpoint['state_dict'])} tensors of {type(module).__name__}; trained on: {seen}.")
    return out


def convertible_methods() -> dict[str, type[SegmentationModule]]:
    """Methods that have an `official.py`, by the name of their folder."""
    classes = (getattr(ovsl.methods, name) for name in ovsl.methods.__all__)
    folders = {_folder(method): method for method in classes}
    root = Path(ovsl.methods.__file__).parent
    return {name: method for name, method in sorted(folders.items()) if (root / name / "official.py").is_file()}


def _folder(method: type[SegmentationModule]) -> str:
    return method.__module__.split(".")[2]


def _official(method: str) -> ModuleType:
    return importlib.import_module(f"ovsl.methods.{method}.official")


def _published_settings(method: str, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    official = _official(method)
    if not hasattr(official, "settings"):
        raise InputError(f"Give the settings of this {method} checkpoint with -c CONFIG.")
    published: dict[str, Any] = official.settings(state_dict)
    return published


def _write_clip(module: SegmentationModule, path: Path, checkpoint: dict[str, Any]) -> None:
    """Write the CLIP beside the checkpoint, which from then on names that file."""
    weights = pack_attention(module.clip.model.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    clip = checkpoint["ovsl"]["settings"]["init_args"]["clip"]
    clip["pretrained"] = checkpoint["ovsl"]["clip"]["pretrained"] = str(path)
