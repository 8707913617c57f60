"""Results as files, tables, charts and pictures. No torch here: `ovsl report` starts without it."""

from ovsl.results.result import ClassResult, EvaluationResult

__all__ = ["ClassResult", "EvaluationResult"]
