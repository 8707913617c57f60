"""`ovsl test --suite NAME`: test one method on the datasets of a suite, and make their table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ovsl.errors import InputError
from ovsl.results.tables import format_table
from ovsl.runs.files import write_text
from ovsl.suites import Suite, SuiteTest, run_cells


def main(args: Sequence[str]) -> int:
    """Test what is not finished of a suite, and print one table of all that is.

    Args:
        args: Of `ovsl test`, with `--suite NAME`.

    Returns:
        0, or 1 where a dataset failed.

    Raises:
        InputError: There is no such suite, or nothing of it could be tested.
        StoppedError: A signal stopped it; the same command goes on.
    """
    scout = argparse.ArgumentParser(prog="ovsl test", add_help=False, allow_abbrev=False)
    scout.add_argument("--suite", required=True)
    line, others = scout.parse_known_args(list(args))
    suite = Suite.load(line.suite)
    tests = suite.tests(others)
    print(f"{suite.title}: {', '.join(test.name for test in tests)}.", flush=True)
    outcomes = run_cells(tests, say=lambda line: print(line, flush=True), ended_well=SuiteTest.keep)
    failed = {outcome.cell.name: outcome.status for outcome in outcomes if outcome.status}
    results = [test.result() for test in tests if test.finished]
    if not results:
        raise InputError(f"No dataset of the suite '{suite.name}' could be tested; each one's reason stands above.")
    folder = tests[0].run_dir
    write_text(folder / "table.md", format_table(results, "markdown"))
    print("\n" + format_table(results), end="")
    for dataset, status in failed.items():
        print(f"failed: {dataset} (status {status}); its reason stands above", file=sys.stderr)
    print(f"results are in {folder}; the same command goes on with what is missing", flush=True)
    return 1 if failed else 0
