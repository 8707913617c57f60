"""A method built from configuration files, for the tools that need a model but no trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import SUPPRESS, ArgumentParser, Namespace
from lightning import seed_everything

import ovsl.methods  # noqa: F401 - importing the methods makes their bare names known to the parser
from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule
from ovsl.shipped import ConfigurationFile

OTHER_SECTIONS = (
    "data", "trainer", "seed_everything", "run_dir", "ckpt_path", "weights_only",
    "checkpoint", "pictures", "predictions", "verbose", "return_predictions",
)  # fmt: skip
"""Sections of a whole experiment's file that say nothing about the model."""


def model_parser(prog: str, description: str, required: bool = True) -> ArgumentParser:
    """Parser with ``-c FILE`` (repeatable, whole experiments too) and ``--model``.

    Args:
        prog: What the usage line calls the command.
        description: Shown by ``--help``.
        required: Whether a model has to be given.
    """
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("-c", "--config", action=ConfigurationFile, help=ConfigurationFile.HELP)
    parser.add_subclass_arguments(SegmentationModule, "model", required=required, fail_untyped=False)
    for section in OTHER_SECTIONS:
        parser.add_argument(f"--{section}", type=Any, default=None, help=SUPPRESS)
    return parser


def build_model(parser: ArgumentParser, config: Namespace) -> SegmentationModule:
    """Build the parsed model, after the seed of the experiment: a CLIP with random weights is that of the run."""
    seed = config.seed_everything
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed_everything(seed, verbose=False)
    model: SegmentationModule = parser.instantiate_classes(config).model
    return model


def load_checkpoint(module: SegmentationModule, path: Path) -> None:
    """Load a checkpoint that ``ovsl fit`` or ``ovsl convert`` wrote.

    Raises:
        InputError: No such file, or a checkpoint that does not fit.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint {str(path)!r}; give --ckpt_path FILE, or -c RUN_DIR/config.yaml.")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)


def model_settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of the parsed model in plain types, as checkpoints record them."""
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
    settings: dict[str, Any] = plain["model"]
    return settings


def forget_clip_weights(config: Namespace) -> None:
    """Let the parsed model stand on a randomly initialised CLIP."""
    clip = config.model.init_args.clip
    clip.pretrained = None
    clip.quick_gelu = None
