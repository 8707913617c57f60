"""`ovsl report`: one table, a chart of the classes, comparisons, from the result files of any number of runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ovsl.errors import InputError
from ovsl.progress import busy, progress
from ovsl.results.chart import draw_per_class_chart
from ovsl.results.comparison import compare, format_comparisons
from ovsl.results.confusion import Confusion, confusion_file
from ovsl.results.curves import curves_html, training_curves
from ovsl.results.diagnosis import SIMILAR, diagnose
from ovsl.results.diagnosis_counts import DiagnosisCounts, diagnosis_file
from ovsl.results.diagnosis_page import diagnosis_page
from ovsl.results.image_counts import ImageCounts, counts_file
from ovsl.results.page import detail, results_page
from ovsl.results.result import EvaluationResult
from ovsl.results.tables import TableStyle, average_over_seeds, format_table
from ovsl.runs.files import write_text


def main(args: Sequence[str]) -> None:
    """`ovsl report RUN_DIR... [--format text] [--output FILE] [--chart FILE.png] [--stage test]`."""
    from ovsl.parsing import Parser

    parser = Parser(prog="ovsl report", description="Print one table of all results below the directories.")
    # From its signature alone, jsonargparse would want a list in brackets here.
    parser.add_argument("run_dirs", nargs="*", type=Path, help="Directories of runs, searched at any depth.")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="Two runs on the same images: B - A with its interval, dataset by dataset.",
    )
    parser.add_argument(
        "--diagnosis",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="Runs of `ovsl test --diagnosis true`: a page that tells where their errors come from, and JSON.",
    )
    parser.add_argument("--similarity", type=float, default=SIMILAR, help="Names from here on are near, -1 to 1.")
    parser.add_function_arguments(report, skip={"run_dirs"}, as_group=False)
    given = parser.parse_args(list(args)).as_dict()
    diagnosed, similarity = given.pop("diagnosis"), given.pop("similarity")
    if diagnosed is not None:
        report_diagnosis(diagnosed, given["html"], similarity)
    elif (pair := given.pop("compare")) is not None:
        first, second = pair
        report_comparison(first, second, given["format"], given["output"], given["stage"])
    elif given["run_dirs"]:
        report(**given)
    else:
        raise InputError("Of which runs? Name their directories: ovsl report RUN_DIR...")


def report(
    run_dirs: list[Path],
    format: TableStyle = "text",
    output: Path | None = None,
    chart: Path | None = None,
    html: Path | None = None,
    stage: Literal["test", "validate"] | None = None,
    average_seeds: bool = False,
) -> None:
    """Print one table of all results found below the given directories.

    Args:
        run_dirs: Run directories, or directories that hold several; `results` folders are searched at any depth.
        format: Style of the table: `text`, `markdown`, `csv` or `latex` (with the booktabs package).
        output: File that the table is written to, instead of the terminal.
        chart: PNG file for a bar chart of the IoU of every class.
        html: Folder for a page `index.html`: the table, curves of training, and of each result its classes, the most
            confused ones, the best and the worst images, in one file that needs no other.
        stage: Only the results of `ovsl test` or of `ovsl validate`; by default both.
        average_seeds: One row, mean and standard deviation, for runs whose names differ only in `-seed<number>`.

    Raises:
        InputError: If a directory does not exist or holds no results, or a result file cannot be read.
    """
    found = collect_files(run_dirs, stage)
    results = _sorted(found.values())
    if average_seeds:
        results = average_over_seeds(results)
    _give(format_table(results, format), output)
    if chart is not None:
        with busy("Drawing"):
            draw_per_class_chart(results, chart)
        print(f"chart written to {chart}")
    if html is not None:
        files = sorted(found, key=lambda file: _order(found[file]))
        details = [detail(file, found[file]) for file in progress(files, "Reading pictures")]
        curves = curves_html(training_curves(list(dict.fromkeys(file.parent.parent for file in files))))
        write_text(html / "index.html", results_page(results, details, curves))
        print(f"page written to {html / 'index.html'}")


def report_comparison(
    first: Path, second: Path, format: TableStyle = "text", output: Path | None = None, stage: str | None = None
) -> None:
    """Print a table of how two runs differ on every dataset that both were tested on.

    Args:
        first: Directory of a run.
        second: Directory of another.
        format: Style of the table.
        output: File that the table is written to, instead of the terminal.
        stage: See `report`.

    Raises:
        InputError: They have no dataset in common, or were not tested on the same images.
    """
    before, after = (_by_dataset(path, stage) for path in (first, second))
    shared = [key for key in before if key in after]
    if not shared:
        raise InputError(f"'{first}' and '{second}' have no dataset in common: test both on the same one.")
    comparisons = [compare(before[key], after[key]) for key in progress(shared, "Comparing")]
    _give(format_comparisons(comparisons, format), output)


def report_diagnosis(run_dirs: list[Path], html: Path | None = None, similarity: float = SIMILAR) -> None:
    """Write a page `index.html` and `diagnosis.json` that tell where the errors of runs come from.

    Args:
        run_dirs: Directories of runs, searched at any depth.
        html: Folder of both; by default `diagnosis` in the first directory.
        similarity: See `ovsl.results.diagnosis.SIMILAR`.

    Raises:
        InputError: No run was tested with a diagnosis.
    """
    found = collect_files(run_dirs, "test")
    files = sorted(found, key=lambda file: (found[file].dataset, found[file].method, found[file].run))
    told = [
        diagnose(
            found[file],
            DiagnosisCounts.read(diagnosis_file(file)),
            Confusion.read(confusion_file(file)).dense(),
            similarity,
        )
        for file in progress([each for each in files if diagnosis_file(each).is_file()], "Diagnosing")
    ]
    if not told:
        raise InputError(f"'{run_dirs[0]}' holds no diagnosis: make it with `ovsl test --diagnosis true`.")
    folder = html or run_dirs[0] / "diagnosis"
    write_text(folder / "diagnosis.json", json.dumps(told, indent=1, allow_nan=False) + "\n")
    write_text(folder / "index.html", diagnosis_page(told))
    print(f"page written to {folder / 'index.html'}, and diagnosis.json beside it")


def _by_dataset(path: Path, stage: str | None) -> dict[tuple[str, str], EvaluationResult]:
    """Results of a run with their counts per image, by dataset and stage; those without counts are left out."""
    found: dict[tuple[str, str], EvaluationResult] = {}
    for file, result in collect_files([path], stage).items():
        if not counts_file(file).is_file():
            continue
        key = (result.dataset, result.stage)
        if key in found:
            raise InputError(f"'{path}' holds several results of {result.dataset}: name the directory of one run.")
        found[key] = replace(result, image_counts=ImageCounts.read(counts_file(file)))
    if not found:
        raise InputError(f"'{path}' holds no counts per image: make them with `ovsl test`.")
    return dict(sorted(found.items()))


def _give(table: str, output: Path | None) -> None:
    if output is None:
        print(table, end="")
    else:
        write_text(output, table)
        print(f"table written to {output}")


def collect(paths: Iterable[Path], stage: str | None = None) -> list[EvaluationResult]:
    """Read every `results/*.json` below the given directories, sorted by dataset, stage, method, run and step.

    See `collect_files`.
    """
    return _sorted(collect_files(paths, stage).values())


def collect_files(paths: Iterable[Path], stage: str | None = None) -> dict[Path, EvaluationResult]:
    """Read every `results/*.json` below the given directories.

    Args:
        paths: Directories, searched at any depth.
        stage: Only results of this stage, `test` or `validate`.

    Returns:
        The results by their files; a file found by two paths counts once. A run without a name gets that of its
        directory.

    Raises:
        InputError: If a directory does not exist or holds no results, or a file cannot be read.
    """
    results: dict[Path, EvaluationResult] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"there is no directory '{path}': give the directory of a run, or of several.")
        found = {}
        for file in path.resolve().rglob("*.json"):
            if file.parent.name == "results":
                try:
                    result = EvaluationResult.from_json(file.read_text(encoding="utf-8"))
                except InputError as error:
                    raise InputError(f"'{file}' is {error}") from error
                found[file] = replace(result, run=result.run or _run_name(file.parent.parent, path.resolve()))
        found = {file: result for file, result in found.items() if stage in (None, result.stage)}
        if not found:
            verbs = f"`ovsl {stage}`" if stage else "`ovsl test` or `ovsl validate`"
            raise InputError(f"'{path}' holds no {f'{stage} ' if stage else ''}results: make them with {verbs}.")
        results |= found
    return results


def _sorted(results: Iterable[EvaluationResult]) -> list[EvaluationResult]:
    return sorted(results, key=_order)


def _order(result: EvaluationResult) -> tuple[str | int, ...]:
    return (result.dataset, result.stage, result.method, result.run, result.step)


def _run_name(run_dir: Path, searched: Path) -> str:
    """Tell a run from the others found: its path below the searched directory."""
    return run_dir.name if run_dir in (searched, searched.parent) else run_dir.relative_to(searched).as_posix()
