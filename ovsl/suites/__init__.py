"""Studies and suites: many runs that belong together, and the table that they add up to."""

from ovsl.suites.execution import Outcome, run_cells
from ovsl.suites.study import Cell, Part, Study
from ovsl.suites.suite import Suite, SuiteTest

__all__ = ["Cell", "Outcome", "Part", "Study", "Suite", "SuiteTest", "run_cells"]
