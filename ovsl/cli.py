"""The verbs of the `ovsl` command, `fit`, `validate`, `test` and `predict`, by LightningCLI; see `ovsl.__main__`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import ovsl.data
import ovsl.methods  # noqa: F401 - importing the methods makes their bare names known to the parser
from ovsl.callbacks import (
    FiniteValues,
    PredictionFiles,
    PredictionPictures,
    Preemption,
    ResultFiles,
    RunCheckpoint,
    Watchdog,
)
from ovsl.cluster import check_launch
from ovsl.data import SegmentationDataModule
from ovsl.methods.base import SegmentationModule
from ovsl.methods.renamed import migrate, migrate_identity
from ovsl.parsing import OneSentence
from ovsl.recipe import recipe
from ovsl.runs.directory import RunDirectory, Start, plan
from ovsl.runs.files import remove_orphans
from ovsl.runs.owner import RunLock
from ovsl.runs.record import CheckpointRecord
from ovsl.runs.trust import check_settings, foreign_name
from ovsl.shipped import configuration_file
from ovsl.tools.models import ConfigurationFile, forget_clip_weights
from ovsl.vocabulary import vocabulary_name

__all__ = ["Command", "run_lightning"]


class CommandParser(OneSentence, LightningArgumentParser):
    """Lightning's parser, with one sentence for a mistake."""


class Command(LightningCLI):
    """LightningCLI with a fixed run directory, resume, and checkpoints that never override what the user wrote."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning does, but configuration files may be shipped ones, `-c ovsl:NAME`, or those of older runs."""
        parser = CommandParser(**kwargs)
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
        parser.add_argument(
            "--print_recipe",
            action="store_true",
            help="Print what would be trained, on what and how, in a dozen lines, and stop.",
        )
        parser.add_argument(
            "--accept_other_data",
            type=bool,
            default=False,
            help="Go on with a run although its training data is not what it began with.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Watchdog, "watchdog")
        parser.add_lightning_class_args(PredictionPictures, "pictures")
        parser.add_lightning_class_args(PredictionFiles, "predictions")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Let a checkpoint fill what the user did not write: defaults < checkpoint < files < command line."""
        given = [str(argument) for argument in (sys.argv[1:] if args is None else args)]
        if given and given[0] in self.subcommands():
            subparser = self._parser(given[0])
            if given[0] == "predict":
                # What was found goes to files; kept in memory, it would grow with the number of photos.
                subparser.set_defaults(
                    {"data": {"class_path": "ovsl.data.PredictionData"}, "return_predictions": False}
                )
            if given[0] != "fit" and (path := checkpoint_of(given[1:])) is not None:
                settings = CheckpointRecord.read(path).settings
                # Foreign settings are left out where the user names the model.
                if settings is not None and (foreign_name(settings) is None or not names_model(given[1:])):
                    check_settings(settings)
                    subparser.set_defaults({"model": migrate(settings)})
        # Lightning's own version warns of arguments that come from Python, and has nothing else to add.
        self.config = parser.parse_args(given)

    def _parse_ckpt_path(self) -> None:
        # Lightning's own version lets the checkpoint override the user; `parse_arguments` above replaces it.
        pass

    def before_instantiate_classes(self) -> None:
        """Settle the run directory and the logger before anything is built."""
        config = self.config[self.subcommand]
        if config.print_recipe:
            # The machine that prints needs neither the devices nor the weights that the run asks for.
            self.asked = dict(config.trainer)
            config.trainer.update(Namespace(accelerator="cpu", devices=1, num_nodes=1, strategy="auto", precision=None))
            forget_clip_weights(config)
            if config.model.init_args.get("backbone_pretrained"):
                config.model.init_args.backbone_pretrained = False
        if config.run_dir is None:
            config.run_dir = str(Path("runs") / self._default_run_name(config))
        config.trainer.default_root_dir = config.run_dir
        # A number of devices may come as text.
        if str(config.trainer.devices).isdigit() and not config.trainer.fast_dev_run:
            check_launch(int(config.trainer.devices), config.trainer.num_nodes)
        if config.trainer.logger in (None, True) and not config.trainer.fast_dev_run:
            arguments = {"save_dir": config.run_dir, "name": "", "version": "", "default_hp_metric": False}
            config.trainer.logger = Namespace(
                class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=Namespace(**arguments)
            )

    def _default_run_name(self, config: Any) -> str:
        method = config.model.class_path.rsplit(".", 1)[-1]
        if self.subcommand == "predict":
            return f"{method}-predict"
        data = config.data.init_args
        # A dataset of the catalogue stands for its vocabulary.
        named = data.get("train") if isinstance(data.get("train"), str) else None
        words = data.get("vocabulary") or (named or "evaluation").partition("/")[0]
        return f"{method}-{vocabulary_name(words)}"

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
        self.start: Start = plan(verb, plain, type(self.model).__name__, self.model.trainable, migrate_identity)
        self.config_init[verb]["ckpt_path"] = self.start.checkpoint and str(self.start.checkpoint)
        _say(self.start.message)
        if plain["trainer"]["fast_dev_run"] or self.start.complete:
            return
        if verb != "fit":
            rank_zero_only(RunDirectory(Path(plain["run_dir"])).record_evaluation)(verb, plain)

    def fit(self, **arguments: Any) -> None:
        """Train, unless the run is complete already, as the only owner of the run directory."""
        if self.start.complete:
            return
        if self.plain["trainer"]["fast_dev_run"]:
            self.trainer.fit(**arguments)
            return
        directory, source = RunDirectory(Path(self.plain["run_dir"])), self.datamodule.train
        rank_zero_only(directory.create)()
        with RunLock(directory.path) if self.trainer.is_global_zero else nullcontext():
            if source is not None and not self.plain["accept_other_data"]:
                directory.check_same_data(source)
            rank_zero_only(remove_orphans)(directory.path)
            rank_zero_only(directory.record_fit)(self.plain, source and source.fingerprint())
            if self.start.validate:
                self.trainer.validate(**arguments)
                return
            preemption = next(each for each in self._callbacks if isinstance(each, Preemption))
            with preemption.request.listening():
                self.trainer.fit(**arguments)
            self._say_end(directory)

    @property
    def _callbacks(self) -> list[Callback]:
        found: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined] # given by the trainer's parts
        return found

    def _say_end(self, directory: RunDirectory) -> None:
        step, most = self.trainer.global_step, self.trainer.max_steps
        if not self.trainer.should_stop or step == most:
            return
        timers = (each for each in self._callbacks if isinstance(each, Timer))
        if any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers):
            reason = "trainer.max_time"
        else:
            reason = "early stopping" if self.trainer.early_stopping_callbacks else "a callback"
        rank_zero_only(directory.record_end)(self.plain, step, reason)
        _say(f"Training is complete: {reason} ended it at step {step}" + (f" of {most}." if most != -1 else "."))


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
            "num_sanity_val_steps": 0,
        },
        parser_kwargs={"prog": "ovsl"},
        args=None if args is None else list(args),
    )


def _given(args: Sequence[str], *names: str) -> dict[str, Any]:
    """What a command gives for some options, in its files or on its line."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("-c", "--config", action="append", default=[], type=configuration_file)
    for name in names:
        scout.add_argument(f"--{name}")
    line, _ = scout.parse_known_args(args)
    # What is wrong with a file is for the real parser to say.
    files = [yaml.safe_load(file.read_text()) for file in line.config if file.is_file()]
    given: dict[str, Any] = {}
    for source in (*(file for file in files if isinstance(file, dict)), vars(line)):
        given |= {name: source[name] for name in names if source.get(name) is not None}
    return given


def names_model(args: Sequence[str]) -> bool:
    """Whether a command names the class of its model, in its files or on its line."""
    given = _given(args, "model", "model.class_path")
    model = given.get("model")
    return isinstance(model, str) or "model.class_path" in given or (isinstance(model, dict) and "class_path" in model)


def checkpoint_of(args: Sequence[str]) -> Path | None:
    """Find the checkpoint that a command names, by `ckpt_path` or by its `run_dir`, in its files or on its line."""
    given = _given(args, "ckpt_path", "run_dir")
    if "ckpt_path" in given:
        return Path(given["ckpt_path"])
    return RunDirectory(Path(given["run_dir"])).newest_checkpoint()[0] if "run_dir" in given else None


@rank_zero_only
def _say(message: str | None) -> None:
    if message:
        print(message, flush=True)
