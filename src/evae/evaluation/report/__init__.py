"""The numbers of an evaluation as people read them: tables, plots, pages, the terminal, a model card.

Enters: records and the compared cells. Leaves: HTML, Markdown, PNG, JSON. May import: the other inner rooms of
`evaluation`, and `common`.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.evaluation.report.model_index import benchmark, eval_entries, eval_results, model_index
    from evae.evaluation.report.plots import write_plots
    from evae.evaluation.report.tables import EvaluationNumbers
    from evae.evaluation.report.terminal import summary_table
    from evae.evaluation.report.write import write_report

__all__ = [
    "EvaluationNumbers",
    "benchmark",
    "eval_entries",
    "eval_results",
    "model_index",
    "summary_table",
    "write_plots",
    "write_report",
]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(
        __name__,
        {
            "EvaluationNumbers": "tables",
            "benchmark": "model_index",
            "eval_entries": "model_index",
            "eval_results": "model_index",
            "model_index": "model_index",
            "summary_table": "terminal",
            "write_plots": "plots",
            "write_report": "write",
        },
    )
