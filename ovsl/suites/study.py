"""What a study consists of: its cells, and the commands that each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ovsl.configuration import read_configuration
from ovsl.errors import InputError


@dataclass(frozen=True)
class Part:
    """What one entry of an axis adds to a run.

    Args:
        configs: Configuration files; later ones win, and those of later axes over those of earlier ones.
        options: Options by their dotted names, such as `trainer.max_steps`.
        train: Whether there is anything to train; a method without has one run, not one for each seed.
    """

    configs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    train: bool = True

    @classmethod
    def of(cls, content: Any, where: str) -> Part:
        """Read a part of a study's file.

        Raises:
            InputError: It has other entries than those above, or a file that does not exist.
        """
        content = {} if content is None else content
        known = {"configs", "options", "train"}
        if not isinstance(content, dict) or not content.keys() <= known:
            raise InputError(f"{where} takes configs, options and train, but is {content!r}.")
        configs = tuple(map(str, content.get("configs") or ()))
        # `ovsl:NAME` is a file that comes with ovsl.
        missing = next((name for name in configs if not name.startswith("ovsl:") and not Path(name).is_file()), None)
        if missing is not None:
            raise InputError(f"{where} names {missing!r}, which does not exist below {Path.cwd()}.")
        return cls(configs, content.get("options") or {}, bool(content.get("train", True)))


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        name: Of the run.
        run_dir: Its folder.
        parts: What it is made of, the general ones first.
        seed: None where nothing is trained.
    """

    name: str
    run_dir: Path
    parts: tuple[Part, ...]
    seed: int | None

    def commands(self) -> list[list[str]]:
        """Give the arguments of `ovsl` one after the other: train, then test."""
        stack = [argument for part in self.parts for config in part.configs for argument in ("-c", config)]
        options = {key: value for part in self.parts for key, value in part.options.items()}
        given = [argument for key, value in options.items() for argument in (f"--{key}", _text(value))]
        own = ["--run_dir", str(self.run_dir)]
        if self.seed is None:
            return [["test", *stack, *given, *own]]
        seeds = ["--seed_everything", str(self.seed), "--data.seed", str(self.seed)]
        return [["fit", *stack, *given, *seeds, *own], ["test", "-c", str(self.run_dir / "config.yaml"), *own]]

    @property
    def finished(self) -> bool:
        """Whether its test results are there."""
        return any(self.run_dir.glob("results/test-*.json"))


@dataclass(frozen=True)
class Study:
    """Runs over the product of axes and seeds.

    Args:
        file: Where it is written down.
        runs: Folder of the runs.
        table: Markdown file of the table at the end.
        common: What all runs share.
        axes: Entries by name, by axis; such as rows, datasets.
        seeds: Of training and data.
        after: Commands of further analyses, with `{runs}` for the folder; run after the table.
        overrides: Options that win over all others.
    """

    file: Path
    runs: Path
    table: Path
    common: Part
    axes: Mapping[str, Mapping[str, Part]]
    seeds: tuple[int, ...]
    after: tuple[tuple[str, ...], ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        file: Path,
        runs: Path | None = None,
        seeds: tuple[int, ...] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Study:
        """Read a study.

        Args:
            file: YAML with `runs`, `table`, `configs`, `options`, `axes`, `seeds` and `after`.
            runs: Another folder of the runs.
            seeds: Other seeds.
            overrides: Options that win over those of the file.

        Raises:
            InputError: No such file, or one that is no study.
        """
        try:
            content = read_configuration(file)
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"Cannot read the study {file}: {error}.") from error
        known = {"runs", "table", "configs", "options", "axes", "seeds", "after"}
        if not isinstance(content, dict) or not content.keys() <= known or not content.get("axes"):
            raise InputError(f"{file} is no study: it takes {', '.join(sorted(known))}, and needs axes.")
        axes = {
            axis: {str(name): Part.of(part, f"{file}: axes.{axis}.{name}") for name, part in entries.items()}
            for axis, entries in content["axes"].items()
        }
        common = Part.of({key: content[key] for key in ("configs", "options") if key in content}, str(file))
        folder = runs or Path(content.get("runs") or Path("runs") / file.stem)
        return cls(
            file=file,
            runs=folder,
            table=Path(content.get("table") or folder / "table.md"),
            common=common,
            axes=axes,
            seeds=tuple(seeds if seeds is not None else content.get("seeds", (0,))),
            after=tuple(tuple(map(str, command)) for command in content.get("after", ())),
            overrides=overrides or {},
        )

    def cells(self) -> list[Cell]:
        """Give all runs, one seed after the other."""
        found: dict[str, Cell] = {}
        for seed in self.seeds:
            for chosen in product(*(entries.items() for entries in self.axes.values())):
                name = "-".join(entry for entry, _ in chosen)
                parts = (self.common, *(part for _, part in chosen), Part(options=self.overrides))
                trained = all(part.train for part in parts)
                name = f"{name}-seed{seed}" if trained else name
                found.setdefault(name, Cell(name, self.runs / name, parts, seed if trained else None))
        return list(found.values())

    @property
    def page(self) -> Path:
        """Folder of the page of results."""
        return self.runs / "page"

    def report(self) -> list[str]:
        """Give the arguments of `ovsl` that make the table and the page: mean and spread over seeds."""
        options = ["--stage", "test", "--average_seeds", "true", "--format", "markdown", "--output", str(self.table)]
        return ["report", str(self.runs), *options, "--html", str(self.page)]

    def analyses(self) -> list[list[str]]:
        """Give the commands that follow the table."""
        return [[argument.replace("{runs}", str(self.runs)) for argument in command] for command in self.after]


def _text(value: Any) -> str:
    """Write an option's value as the command line takes it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
