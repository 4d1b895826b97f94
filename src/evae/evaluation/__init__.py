"""Evaluation of predicted cells: metrics, baselines, tables, reports. `evaluate` is the way in."""

from evae.evaluation.metrics.distances import distribution_metrics
from evae.evaluation.report.model_index import model_index
from evae.evaluation.report.terminal import summary_table
from evae.evaluation.result import EvaluationResult
from evae.evaluation.run import SUITES, evaluate

__all__ = ["SUITES", "EvaluationResult", "distribution_metrics", "evaluate", "model_index", "summary_table"]
