"""The verbs of the `ovsl` command, `fit`, `validate`, `test` and `predict`, by LightningCLI; see `ovsl.__main__`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import dict_to_namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import ovsl.callbacks
import ovsl.data
import ovsl.methods
from ovsl.callbacks import FiniteValues, Preemption, ProgressLines, ResultFiles
from ovsl.cluster import check_launch
from ovsl.command_line import method_asked_about, recorded_model
from ovsl.data import SegmentationDataModule
from ovsl.errors import InputError
from ovsl.loggers import LOGGER, complete_content, complete_line, set_folder
from ovsl.methods.base import SegmentationModule
from ovsl.options import CALLBACKS, RUN_OPTIONS
from ovsl.parsing import OneSentence
from ovsl.recipe import anywhere, recipe
from ovsl.renamed import migrate_identity
from ovsl.runs.directory import RunDirectory, Start, plan
from ovsl.tools.models import ConfigurationFile
from ovsl.training import say, train
from ovsl.vocabulary import vocabulary_name

__all__ = ["Command", "run_lightning"]


class CommandParser(OneSentence, LightningArgumentParser):
    """Lightning's parser, with one sentence for a mistake."""


class CommandFile(ConfigurationFile):
    """Takes a configuration file of a verb."""

    def take(self, content: Any) -> Any:
        """See `ConfigurationFile.take`; loggers of a list belong to the run too."""
        return complete_content(super().take(content))


class Command(LightningCLI):
    """LightningCLI with a fixed run directory, resume, and checkpoints that never override what the user wrote."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning does, but configuration files may be shipped ones, `-c ovsl:NAME`, or those of older runs."""
        parser = CommandParser(**kwargs)
        parser.add_argument("-c", "--config", action=CommandFile, help=CommandFile.HELP)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run directory and the callbacks that every run has."""
        parser.set_defaults({"data": {"class_path": "ovsl.data.SegmentationDataModule"}})
        for name, options in RUN_OPTIONS.items():
            parser.add_argument(f"--{name}", **options)
        for name, callback in CALLBACKS.items():
            parser.add_lightning_class_args(getattr(ovsl.callbacks, callback), name)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Let a checkpoint fill what the user did not write: defaults < checkpoint < files < command line."""
        given = [str(argument) for argument in (sys.argv[1:] if args is None else args)]
        verb = given[0] if given else ""
        if verb == "predict":
            # What was found goes to files; kept in memory, it would grow with the number of photos.
            data = {"class_path": "ovsl.data.PredictionData"}
            self._parser(verb).set_defaults({"data": data, "return_predictions": False})
        if verb in ("validate", "test"):
            # The table of results says it once, in percent.
            self._parser(verb).set_defaults({"verbose": False})
        if verb in self.subcommands() and verb != "fit" and (model := recorded_model(given[1:])) is not None:
            self._parser(verb).set_defaults({"model": model})
        if (description := method_asked_about(given[1:])) is not None:
            print(description, end="\n\n")
        # Lightning's own version warns of arguments that come from Python, and has nothing else to add.
        self.config = parser.parse_args(complete_line(given))

    def _parse_ckpt_path(self) -> None:
        # Lightning's own version lets the checkpoint override the user; `parse_arguments` above replaces it.
        pass

    def before_instantiate_classes(self) -> None:
        """Settle the run directory and the logger before anything is built."""
        config = self.config[self.subcommand]
        if config.suite is not None:
            raise InputError(
                "A suite is tested by `ovsl test --suite NAME`: on the command line, and by no other verb."
            )
        if config.print_recipe:
            self.asked = dict(config.trainer)
            anywhere(config)
        if config.run_dir is None:
            config.run_dir = str(Path("runs") / self._default_run_name(config))
        config.trainer.default_root_dir = config.run_dir
        # A number of devices may come as text.
        if str(config.trainer.devices).isdigit() and not config.trainer.fast_dev_run:
            check_launch(int(config.trainer.devices), config.trainer.num_nodes)
        if config.trainer.fast_dev_run:
            config.trainer.logger = False
        elif config.trainer.logger in (None, True):
            config.trainer.logger = dict_to_namespace(LOGGER)
        set_folder(config.trainer.logger, config.run_dir)

    def _default_run_name(self, config: Any) -> str:
        method = config.model.class_path.rsplit(".", 1)[-1]
        if self.subcommand == "predict":
            return f"{method}-predict"
        data = config.data.init_args
        # A dataset of the catalogue stands for its vocabulary.
        named = data.get("train") if isinstance(data.get("train"), str) else None
        words = data.get("vocabulary") or (named or "evaluation").partition("/")[0]
        return f"{method}-{vocabulary_name(words)}"

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As Lightning does, with lines of a log instead of a bar where nobody sees a bar."""
        asked = self.config_init[self.subcommand].trainer
        own_bar = any(isinstance(each, ProgressBar) for each in asked.callbacks or ())
        if asked.enable_progress_bar is False or own_bar or sys.stderr.isatty():
            return super().instantiate_trainer(**kwargs)
        trainer = super().instantiate_trainer(**kwargs, enable_progress_bar=False)
        trainer.callbacks.append(ProgressLines())  # type: ignore[attr-defined] # given by the trainer's parts
        return trainer

    def after_instantiate_classes(self) -> None:
        """Give the model its settings, let `runs` decide how to start, and record the start."""
        verb = str(self.subcommand)
        if self.config[verb].print_recipe:
            print(recipe(self.model, self.datamodule, self.asked))
            raise SystemExit(0)
        dumped = self._parser(verb).dump(self.config[verb], skip_none=False, skip_validation=True)
        plain = yaml.safe_load(dumped)
        self.plain = plain
        self.model.settings = plain["model"]
        self.model.diagnose = plain["diagnosis"]
        self.start: Start = plan(verb, plain, type(self.model).__name__, self.model.trainable, migrate_identity)
        self.config_init[verb]["ckpt_path"] = self.start.checkpoint and str(self.start.checkpoint)
        say(self.start.message)
        if verb != "fit" and not plain["trainer"]["fast_dev_run"]:
            rank_zero_only(RunDirectory(Path(plain["run_dir"])).record_evaluation)(verb, plain)

    def fit(self, **arguments: Any) -> None:
        """Train, unless the run is complete already."""
        train(self.trainer, self.plain, self.start, arguments)


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
            "callbacks": [ResultFiles(), FiniteValues(), Preemption()],
            # The data module shards by itself: every evaluation image exactly once, resumable training order.
            "use_distributed_sampler": False,
            "logger": LOGGER,
            "num_sanity_val_steps": 0,
        },
        parser_kwargs={"prog": "ovsl"},
        args=None if args is None else list(args),
    )
