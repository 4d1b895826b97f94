"""Predicted cells beside real ones and baselines. `evaluate` is the way in.

Enters: predicted, real and training cells as AnnData, h5ad files or splits of a dataset. Leaves: an
`EvaluationResult` with tables, plots, a report, and the numbers of a model card. May import: its inner rooms, `common`.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.evaluation.metrics.distances import distribution_metrics
    from evae.evaluation.report.arrows import plot_counterfactual
    from evae.evaluation.report.model_index import model_index
    from evae.evaluation.report.terminal import main_tables, summary_table
    from evae.evaluation.result import EvaluationResult
    from evae.evaluation.run import SUITES, check_extra_baselines, evaluate

__all__ = [
    "SUITES",
    "EvaluationResult",
    "check_extra_baselines",
    "distribution_metrics",
    "evaluate",
    "main_tables",
    "model_index",
    "plot_counterfactual",
    "summary_table",
]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(
        __name__,
        {
            "SUITES": "run",
            "EvaluationResult": "result",
            "check_extra_baselines": "run",
            "distribution_metrics": "metrics.distances",
            "evaluate": "run",
            "main_tables": "report.terminal",
            "model_index": "report.model_index",
            "plot_counterfactual": "report.arrows",
            "summary_table": "report.terminal",
        },
    )
