"""A method built from configuration files, for the tools that need a model but no trainer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import Path_fr
from lightning import seed_everything

import ovsl.methods  # noqa: F401 - importing the methods makes their bare names known to the parser
from ovsl.clip.towers import RANDOM
from ovsl.clip.toy import TOY_CLIPS
from ovsl.configuration import read_configuration
from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule
from ovsl.parsing import Parser
from ovsl.renamed import current_content, migrate
from ovsl.runs.directory import RunDirectory
from ovsl.runs.record import CheckpointRecord, load_weights
from ovsl.runs.trust import check_settings
from ovsl.shipped import configuration_file


class ConfigurationFile(ActionConfigFile):
    """Takes a configuration file, or a shipped one by its name; one of a run may have the option names of its time."""

    HELP = (
        "Configuration file, or the name of a shipped one (ovsl:zegclip/voc_inductive, ovsl:data/toy); later ones win."
    )

    sections: tuple[str, ...] | None = None
    """What is read of a whole experiment's file; None for all of it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """See `jsonargparse.ActionConfigFile`."""
        file = configuration_file(values)
        # What is wrong with the file itself is for the parser to say.
        with suppress(OSError, UnicodeError, yaml.YAMLError):
            content = self.take(current_content(read_configuration(file), file))
            values = yaml.safe_dump(content, sort_keys=False)
        super().__call__(parser, cfg, values, option_string)
        if file.is_file():
            # The parser was given a text, and does not know where it is from.
            cfg[self.dest][-1] = Path_fr(str(file))

    def take(self, content: Any) -> Any:
        """Choose what is taken of a file: its `sections` that say something, where the class names any."""
        if self.sections is None or not isinstance(content, dict):
            return content
        return {name: content[name] for name in self.sections if content.get(name) is not None}


class ModelFile(ConfigurationFile):
    """Takes what concerns the model from a configuration file, whatever else a run has in it."""

    sections = ("model", "seed_everything", "run_dir", "ckpt_path")


def model_parser(prog: str, description: str, required: bool = True) -> ArgumentParser:
    """Parser with `-c FILE` (repeatable, whole experiments too) and `--model`.

    Args:
        prog: What the usage line calls the command.
        description: Shown by `--help`.
        required: Whether a model has to be given.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("-c", "--config", action=ModelFile, help=ConfigurationFile.HELP)
    parser.add_subclass_arguments(SegmentationModule, "model", required=required, fail_untyped=False)
    parser.add_argument("--seed_everything", type=bool | int, default=None, help="Seed of a random CLIP.")
    parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run whose weights are meant.")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint; wins over the run's own.")
    return parser


def trained_model(parser: ArgumentParser, config: Namespace) -> SegmentationModule:
    """Build the parsed model with its weights: of `ckpt_path`, or the last of `run_dir`.

    Raises:
        InputError: A method that trains, and no checkpoint.
    """
    module = build_model(parser, config)
    if not module.trainable:
        return module
    if config.ckpt_path is None and config.run_dir is None:
        raise InputError("Which weights? Give --ckpt_path FILE, or -c RUN_DIR/config.yaml.")
    weights = Path(config.ckpt_path) if config.ckpt_path else newest_weights(Path(config.run_dir))
    if weights is None:
        raise InputError(f"There is no checkpoint in {config.run_dir!r}; give the folder of a run of `ovsl fit`.")
    load_weights(module, weights)
    return module


def newest_weights(run_dir: Path) -> Path | None:
    """Find the newest checkpoint of a run that is not damaged, and say which newer ones are."""
    path, complaints = RunDirectory(run_dir).newest_checkpoint()
    for complaint in complaints:
        print(complaint)
    return path


def load_model(source: str | Path) -> SegmentationModule:
    """Build a method with its weights from what a user has at hand.

    Args:
        source: A run directory, a checkpoint, or a configuration file, shipped ones by name (`ovsl:methods/maskclip`),
            of a method that trains nothing.

    Raises:
        InputError: Nothing of that kind, or a trained method without weights.
    """
    path, parser = configuration_file(str(source)).expanduser(), model_parser("ovsl.load", "")
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return trained_model(parser, parser.parse_args(["-c", str(path)]))
    if path.is_dir():
        last = newest_weights(path)
        configs = [path / f"config{verb}.yaml" for verb in ("", ".test", ".validate", ".predict")]
        config = next((file for file in configs if file.is_file()), None)
        if config is not None:
            # The run's own configuration also has the seed, which a random CLIP needs.
            weights = ["--ckpt_path", str(last)] if last is not None else []
            return trained_model(parser, parser.parse_args(["-c", str(config), *weights]))
        path = last or path
    if not path.is_file():
        raise InputError(
            f"There is nothing to load at '{source}'; give a run directory, a checkpoint, or a method's .yaml file."
        )
    settings = CheckpointRecord.read(path).settings
    if settings is None:
        raise InputError(f"{path} does not say how its method was built; give the run directory that it came from.")
    check_settings(settings)
    config_of_checkpoint = parser.parse_object({"model": migrate(settings), "ckpt_path": str(path)})
    return trained_model(parser, config_of_checkpoint)


def build_model(parser: ArgumentParser, config: Namespace) -> SegmentationModule:
    """Build the parsed model, after the seed of the experiment: a CLIP with random weights is that of the run."""
    seed = config.seed_everything
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed_everything(seed, verbose=False)
    model: SegmentationModule = parser.instantiate_classes(config).model
    return model


def model_settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """`class_path` and `init_args` of the parsed model in plain types, as checkpoints record them."""
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
    settings: dict[str, Any] = plain["model"]
    return settings


def forget_weights(config: Namespace) -> None:
    """Let the parsed model stand on random weights: its CLIP, and the backbone, proxy or teacher beside it."""
    forget_clip_weights(config)
    for name, value in list(config.model.init_args.items(branches=False)):
        key = name.rpartition(".")[2]
        if key == "backbone_pretrained" and value:
            config.model.init_args[name] = False
        elif key == "pretrained" and value == "timm":
            config.model.init_args[name] = None


def forget_clip_weights(config: Namespace) -> None:
    """Let the parsed model stand on a randomly initialised CLIP."""
    clip = config.model.init_args.clip
    clip.pretrained = None if clip.model in TOY_CLIPS else RANDOM
    clip.quick_gelu = None
