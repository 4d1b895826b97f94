"""Numbers from two sets of cells, and the facts of every metric: its title, which way is better, where it is shown.

Enters: matrices of cells, pseudobulks, tables of differential expression. Leaves: numbers by the metric's name.
May import: `evaluation.cells`, `common`.
"""

from evae.evaluation.metrics.distances import distances_between, distribution_metrics
from evae.evaluation.metrics.diversity import diversity_metrics
from evae.evaluation.metrics.facts import METRICS, TABLES, Metric, MetricTable, shown
from evae.evaluation.metrics.pseudobulk import discrimination_scores, pseudobulk_metrics
from evae.evaluation.metrics.recovery import de_metrics

__all__ = [
    "METRICS",
    "TABLES",
    "Metric",
    "MetricTable",
    "de_metrics",
    "discrimination_scores",
    "distances_between",
    "distribution_metrics",
    "diversity_metrics",
    "pseudobulk_metrics",
    "shown",
]
