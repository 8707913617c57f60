"""The two small CLIPs of the toy world that travel with the package; `README.md` says what they were trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ovsl.errors import InputError

TOY_CLIPS = ("toy_vit", "toy_convnext")
_TOKEN_IDS = "token_ids"
_TOKEN_EMBEDDING = "token_embedding.weight"


@dataclass(frozen=True)
class ToyCLIP:
    """A loaded toy CLIP.

    Attributes:
        model: open_clip `CLIP` in evaluation mode, float32, exact GELU.
        mean: Channel means of the image normalisation, for values in 0..1.
        std: Channel standard deviations, likewise.
        config: open_clip model configuration (`embed_dim`, `vision_cfg`, `text_cfg`).
        known_tokens: Token ids that occurred in training; the embeddings of all others are zero.
    """

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: dict[str, Any]
    known_tokens: frozenset[int]


def load_toy_clip(name: str, folder: Path | None = None) -> ToyCLIP:
    """Load a toy CLIP.

    Args:
        name: `toy_vit` or `toy_convnext`.
        folder: Where `<name>.json` and `<name>.safetensors` lie; the package's own by default.

    Raises:
        InputError: There is no such model.
    """
    if folder is None and name not in TOY_CLIPS:
        raise InputError(f"Unknown toy CLIP {name!r}; give {' or '.join(TOY_CLIPS)}.")
    folder = folder or Path(__file__).parent
    description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    config, preprocessing = description["model_cfg"], description["preprocess_cfg"]
    model = open_clip.CLIP(**config)
    weights = {key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()}
    token_ids = weights.pop(_TOKEN_IDS).long()
    rows = weights[_TOKEN_EMBEDDING]
    weights[_TOKEN_EMBEDDING] = rows.new_zeros(config["text_cfg"]["vocab_size"], rows.shape[1]).index_copy(
        0, token_ids, rows
    )
    model.load_state_dict(weights)
    mean, std = (tuple(preprocessing[key]) for key in ("mean", "std"))
    return ToyCLIP(model.eval(), mean, std, config, frozenset(token_ids.tolist()))


def save_toy_clip(
    name: str,
    folder: Path,
    weights: Mapping[str, Tensor],
    token_ids: Tensor,
    config: Mapping[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    """Write a toy CLIP in half precision, with the token embeddings that it uses and no others.

    Args:
        name: Stem of the two files.
        folder: Created if need be.
        weights: State dict of the open_clip model, `token_embedding.weight` holding only the rows of `token_ids`.
        token_ids: Ids of those rows, `(N,)`.
        config: open_clip model configuration, with the tokenizer's full `vocab_size`.
        mean: Channel means of the image normalisation.
        std: Channel standard deviations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in weights.items()}
    # Token ids stay below 65,536, but half precision would round them.
    save_file({**tensors, _TOKEN_IDS: token_ids.cpu().to(torch.int32)}, folder / f"{name}.safetensors")
    description = {"model_cfg": dict(config), "preprocess_cfg": {"mean": list(mean), "std": list(std)}}
    (folder / f"{name}.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
