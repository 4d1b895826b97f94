"""Evaluation of predicted cells: metrics, baselines, tables, reports. `evaluate` is the way in."""

from .distances import distribution_metrics
from .evaluation import SUITES, evaluate
from .model_index import model_index
from .result import EvaluationResult

__all__ = ["SUITES", "EvaluationResult", "distribution_metrics", "evaluate", "model_index"]
