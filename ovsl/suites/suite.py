"""A suite: datasets that one method is tested on by one command, each in a process of its own.

So a dataset that fails, whatever it takes down, does not lose the others, and results are kept as they come.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

import ovsl
from ovsl.errors import InputError
from ovsl.given import given_files, given_options
from ovsl.results.result import EvaluationResult
from ovsl.runs.directory import RunDirectory
from ovsl.runs.files import write_text


@dataclass(frozen=True)
class Suite:
    """Datasets that are tested together; `ovsl/data/suites.yaml` lists them.

    Args:
        name: Name of the suite.
        title: What it is.
        datasets: Settings of each dataset by its name, see `ovsl.data.EvaluationSet`.
        options: Further options of the test by their dotted names.
    """

    name: str
    title: str
    datasets: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> Suite:
        """Load a suite by its name.

        Raises:
            InputError: There is none of this name.
        """
        text = resources.files("ovsl.data").joinpath("suites.yaml").read_text(encoding="utf-8")
        suites: dict[str, dict[str, Any]] = yaml.safe_load(text)
        if name not in suites:
            close = difflib.get_close_matches(name, suites, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(suites)}."
            raise InputError(f"There is no suite '{name}': {hint}")
        facts = suites[name]
        defaults = facts.get("defaults", {})
        datasets = {dataset: {**defaults, **own} for dataset, own in facts["datasets"].items()}
        return cls(name, facts["title"], datasets, facts.get("options", {}))

    def tests(self, args: Sequence[str]) -> list[SuiteTest]:
        """Plan the test of every dataset.

        Without a run directory the folder is named after the method and all that is given, so that two methods of one
        class do not share one.

        Args:
            args: Of `ovsl test`, without the suite.
        """
        given = given_options(args, "run_dir", "ckpt_path", "model", "model.class_path")
        own_sets, own_transform = _own_evaluation(args)
        run_dir, weights = given.get("run_dir"), given.get("ckpt_path")
        if run_dir is None:
            model = given.get("model.class_path") or given.get("model") or "method"
            model = model.get("class_path", "method") if isinstance(model, dict) else model
            run_dir = f"runs/{model.rpartition('.')[2]}-{_digest(args, given_files(args))[:6]}"
        elif weights is None:
            weights = next((str(path) for path in RunDirectory(Path(run_dir)).checkpoints()), None)
        # A folder of its own: other suites have other sizes for the same dataset.
        folder = Path(f"{run_dir}-{self.name}")
        shared = [*args, *(word for name, value in self.options.items() for word in (f"--{name}", json.dumps(value)))]
        shared += ["--run_dir", str(folder), *(["--ckpt_path", weights] if weights is not None else [])]
        tests = []
        for dataset, settings in self.datasets.items():
            content = {key: value for key, value in settings.items() if key != "transform" or not own_transform}
            # The configuration of a run spells out what was left out.
            content |= {key: value for key, value in (own_sets.get(dataset) or {}).items() if value is not None}
            evaluation = json.dumps({dataset: content})
            tests.append(SuiteTest(dataset, folder, ("test", *shared, "--data.evaluation", evaluation), weights))
        return tests


@dataclass(frozen=True)
class SuiteTest:
    """The test of one dataset of a suite; a cell of `ovsl.suites.run_cells`.

    Args:
        name: Of the dataset.
        run_dir: Folder of the suite.
        command: Arguments of `ovsl`.
        weights: Checkpoint that is tested; None where nothing is trained.
    """

    name: str
    run_dir: Path
    command: tuple[str, ...]
    weights: str | None

    def commands(self) -> list[list[str]]:
        """Give the one command."""
        return [list(self.command)]

    @property
    def result_file(self) -> Path:
        """Where its result is, or will be."""
        return self.run_dir / "results" / f"test-{self.name}.json"

    @property
    def finished(self) -> bool:
        """Whether its result is there, and is that of this command with these files and weights."""
        return self.result_file.is_file() and self._records().get(self.name) == self._record()

    def keep(self) -> None:
        """Write down that the result is that of this command."""
        if self.result_file.is_file():
            records = self._records() | {self.name: self._record()}
            write_text(self._file, json.dumps(records, indent=1) + "\n")

    def result(self) -> EvaluationResult:
        """Read the result."""
        return EvaluationResult.from_json(self.result_file.read_text(encoding="utf-8"))

    @property
    def _file(self) -> Path:
        return self.run_dir / "suite.json"

    def _records(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _record(self) -> dict[str, str]:
        """Say what was asked, and what came out."""
        weights: list[str] = []
        if self.weights is not None:
            file = Path(self.weights)
            state = file.stat() if file.exists() else None
            weights = [f"{file.resolve()} {state and (state.st_size, state.st_mtime_ns)}"]
        asked = _digest([ovsl.__version__, *self.command, *weights], given_files(self.command[1:]))
        return {"asked": asked, "result": hashlib.sha256(self.result_file.read_bytes()).hexdigest()}


def _digest(words: Sequence[str], files: Sequence[Mapping[str, Any]]) -> str:
    """Name words and contents of files."""
    return hashlib.sha256(json.dumps([*words, *files], sort_keys=True, default=str).encode()).hexdigest()


def _own_evaluation(args: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Find what the files of a command say of datasets, by name, and whether they or its line set a size for all."""
    datasets: dict[str, Any] = {}
    sized = any(word.startswith("--data.evaluation_transform") for word in args)
    for content in given_files(args):
        data = content.get("data")
        data = data if isinstance(data, dict) else {}
        for part in (data, data.get("init_args")):
            if isinstance(part, dict):
                datasets |= part.get("evaluation") or {}
                sized |= part.get("evaluation_transform") is not None
    return datasets, sized
