"""Evaluation results: a table in the terminal and one file for each dataset."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from ovsl.callbacks.debug import is_debug_run
from ovsl.methods.base import SegmentationModule
from ovsl.results.tables import format_table


class ResultFiles(Callback):
    """Print the results of an evaluation and write them to `<run directory>/results/<stage>-<dataset>.json`.

    `ovsl report` collects these files.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the module computed."""
        self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the module computed."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SegmentationModule)
        if not trainer.is_global_zero or trainer.sanity_checking or not module.evaluation_results:
            return
        folder = Path(trainer.default_root_dir) / "results"
        if not is_debug_run(trainer):
            for result in module.evaluation_results:
                result.write(folder / f"{result.stage}-{result.dataset}.json")
        print("\n" + format_table(module.evaluation_results), flush=True)
