"""The ``ovsl`` command: ``fit``, ``validate``, ``test`` and ``predict`` by LightningCLI, and the small tools."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import ovsl.data
import ovsl.methods  # noqa: F401 - importing the methods makes their bare names known to the parser
from ovsl.callbacks import PredictionFiles, PredictionPictures, ResultFiles, RunCheckpoint
from ovsl.data import SegmentationDataModule
from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule
from ovsl.runs import RunDirectory
from ovsl.shipped import ConfigurationFile

TOOLS = ("convert", "export", "profile", "report")
"""The small commands: modules of :mod:`ovsl.tools`, imported when they are asked for."""

DESCRIPTION = f"""Open-vocabulary semantic segmentation: fit, validate, test, predict; and the tools
{", ".join(TOOLS)} (`ovsl TOOL --help`)."""


class Command(LightningCLI):
    """LightningCLI with a fixed run directory, resume, and checkpoints that never override what the user wrote."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning does, but configuration files may be shipped ones, ``-c ovsl:NAME``."""
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigurationFile, help=ConfigurationFile.HELP)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run directory and the callbacks that every run has."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run; default runs/<method>-<training vocabulary>. A second start there resumes.",
        )
        parser.set_defaults({"data": {"class_path": "ovsl.data.SegmentationDataModule"}})
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(PredictionPictures, "pictures")
        parser.add_lightning_class_args(PredictionFiles, "predictions")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Let a checkpoint fill what the user did not write: defaults < checkpoint < files < command line."""
        given = [str(argument) for argument in (sys.argv[1:] if args is None else args)]
        if given and given[0] in self.subcommands():
            subparser = self._parser(given[0])
            if given[0] == "predict":
                subparser.set_defaults({"data": {"class_path": "ovsl.data.PredictionData"}})
            checkpoint = _checkpoint_argument(given)
            if checkpoint is not None and given[0] != "fit":
                settings = _read_record(checkpoint).get("settings")
                if settings:
                    subparser.set_defaults({"model": settings})
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        # Lightning's own version lets the checkpoint override the user; `parse_arguments` above replaces it.
        pass

    def before_instantiate_classes(self) -> None:
        """Settle the run directory, the logger and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        if config.run_dir is None:
            config.run_dir = str(Path("runs") / self._default_run_name(config))
        self.run_directory = RunDirectory(Path(config.run_dir))
        config.trainer.default_root_dir = config.run_dir
        if config.trainer.logger in (None, True) and not config.trainer.fast_dev_run:
            arguments = {"save_dir": config.run_dir, "name": "", "version": "", "default_hp_metric": False}
            config.trainer.logger = _namespace("lightning.pytorch.loggers.TensorBoardLogger", arguments)

    def _default_run_name(self, config: Any) -> str:
        method = config.model.class_path.rsplit(".", 1)[-1]
        if self.subcommand == "predict":
            return f"{method}-predict"
        data = config.data.init_args
        # A dataset of the catalogue stands for its vocabulary.
        named = data.get("train") if isinstance(data.get("train"), str) else None
        return f"{method}-{data.get('vocabulary') or (named or 'evaluation').partition('/')[0]}"

    def after_instantiate_classes(self) -> None:
        """Give the model its settings, and decide which checkpoint is used."""
        config = self.config[self.subcommand]
        dumped = self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True)
        plain = yaml.safe_load(dumped)
        self.model.settings = plain["model"]
        if config.trainer.fast_dev_run:
            return
        last = self.run_directory.last_checkpoint
        if self.subcommand == "fit":
            if not self.model.trainable:
                method = type(self.model).__name__
                raise InputError(f"{method} has nothing to train; use `ovsl test` or `ovsl predict` at once.")
            self.run_directory.check_same_run(plain)
            if config.ckpt_path is None and last.is_file():
                self.config_init[self.subcommand]["ckpt_path"] = str(last)
                _say(f"Resuming {config.run_dir} from step {_step_of(last)}.")
            rank_zero_only(self.run_directory.record_fit)(plain)
            return
        if self.model.trainable and config.ckpt_path is None:
            if not last.is_file():
                raise InputError(
                    f"{type(self.model).__name__} is trained, but no checkpoint was given and {last} does not exist; "
                    "give --ckpt_path FILE, or --run_dir with the folder of a finished `ovsl fit`."
                )
            self.config_init[self.subcommand]["ckpt_path"] = str(last)
        rank_zero_only(self.run_directory.record_evaluation)(str(self.subcommand), plain)

    def fit(self, **arguments: Any) -> None:
        """Train, unless the run is complete already."""
        path, most = arguments.get("ckpt_path"), self.trainer.max_steps
        if path and Path(path).is_file() and most != -1 and _step_of(Path(path)) >= most:
            _say(f"{self.run_directory.path} is complete: {most} of {most} steps. Raise trainer.max_steps to go on.")
            return
        self.trainer.fit(**arguments)
        if most != -1 and self.trainer.global_step < most:
            raise InputError(
                f"Training stopped at step {self.trainer.global_step} of {most}; start the command again to resume."
            )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        args: Arguments after ``ovsl``; those of the process when None.

    Returns:
        Exit status: 0, or 2 after a mistake in the input, whose one-line message is printed.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        if given and given[0] in TOOLS:
            importlib.import_module(f"ovsl.tools.{given[0]}").main(given[1:])
        else:
            run_lightning(args)
    except InputError as error:
        return _fail(error)
    except (Exception, SystemExit) as error:
        cause = next((e for e in _causes(error) if isinstance(e, InputError)), None)
        if cause is None:
            raise
        return _fail(cause)
    return 0


def run_lightning(args: Sequence[str] | None = None) -> Command:
    """Run one of the LightningCLI verbs and return the finished command, for tests and notebooks."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    return Command(
        SegmentationModule,
        SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=None,
        trainer_defaults={
            "callbacks": [ResultFiles()],
            # The data module shards by itself: every evaluation image exactly once, resumable training order.
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
        },
        parser_kwargs={"prog": "ovsl", "description": DESCRIPTION},
        args=None if args is None else list(args),
    )


def _checkpoint_argument(args: Sequence[str]) -> Path | None:
    """The checkpoint that a command names, by ``--ckpt_path`` or by the run directory it was left in."""
    values: dict[str, str] = {}
    for index, argument in enumerate(args):
        for name in ("--ckpt_path", "--run_dir"):
            if argument == name and index + 1 < len(args):
                values[name] = args[index + 1]
            elif argument.startswith(f"{name}="):
                values[name] = argument.split("=", 1)[1]
    if "--ckpt_path" in values:
        path = Path(values["--ckpt_path"])
        if not path.is_file():
            raise InputError(f"There is no checkpoint {str(path)!r}; give the file that `ovsl fit` wrote.")
        return path
    last = RunDirectory(Path(values["--run_dir"])).last_checkpoint if "--run_dir" in values else None
    return last if last is not None and last.is_file() else None


def _read_record(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:
        raise InputError(f"{path} is not a checkpoint that can be loaded safely ({type(error).__name__}).") from error
    record: dict[str, Any] = checkpoint.get("ovsl") or {}
    return record


def _step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["global_step"])


def _namespace(class_path: str, init_args: dict[str, Any]) -> Any:
    return Namespace(class_path=class_path, init_args=Namespace(**init_args))


@rank_zero_only
def _say(message: str) -> None:
    print(message, flush=True)


def _fail(error: InputError) -> int:
    print(f"ovsl: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


if __name__ == "__main__":
    raise SystemExit(main())
