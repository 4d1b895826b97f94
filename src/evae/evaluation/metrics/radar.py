"""The metrics of a radar, each on one scale: 0 is one system, 1 another, better is outside.

score = (badness of the zero system - badness) / (badness of the zero system - badness of the one system)

where badness is how far a value is from the best one, see `Metric.badness`.
"""

import pandas as pd

from evae.evaluation.metrics.facts import BY_NAME, shown

LEAST_SPAN = 1e-12  # between the two systems; with less there is no scale


def radar_scores(summary: pd.DataFrame, zero: str, one: str) -> pd.DataFrame:
    """Scores of all systems on the metrics that a radar shows.

    Args:
        summary: one row a number with the columns group, level, system, metric and value. Of several rows of a system
            the mean is taken.
        zero: the system that has 0, the copy of the controls.
        one: the system that has 1, one half of the real cells.

    Returns:
        One row a metric, indexed by its title, one column a system; NaN where a system has no value. Metrics in which
        the one system is no better than the zero system are left out: they would be drawn inside out. The protocol
        `paper` stands in for `robust` where that was not computed.
    """
    has_robust = bool((summary["group"] == "robust").any())
    keys = [
        ("paper" if table.group == "robust" and not has_robust else table.group, table.level, metric.name)
        for table, metrics in shown("radar")
        for metric in metrics
    ]
    means = summary.groupby(["group", "level", "metric", "system"])["value"].mean().unstack("system")
    if not {zero, one} <= set(means):
        return pd.DataFrame()
    bad = means.reindex(pd.MultiIndex.from_tuples(keys))
    for key in keys:
        bad.loc[key] = BY_NAME[key[2]].badness(bad.loc[key])
    span = bad[zero] - bad[one]
    scores = bad.rsub(bad[zero], axis=0).div(span, axis=0)[span > LEAST_SPAN]
    return scores.set_axis([BY_NAME[name].title for *_, name in scores.index])
