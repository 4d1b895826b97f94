"""Pictures of tables: the systems of an evaluation by one metric, perturbations by how well they explain cells."""

import pandas as pd
from matplotlib.axes import Axes

from evae.common.figures import BASELINE, FLOOR, GENERATED
from evae.evaluation.metrics.facts import BY_NAME
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.systems.names import MODEL, SPLIT_HALF
from evae.models.contract_evae import EvaeError, near_matches
from evae.plot.axes import axes


def metric(result: EvaluationNumbers, name: str = "fd", ax: Axes | None = None, *, group: str = "robust") -> Axes:
    """Draw one metric of every system of an evaluation: the model, the baselines, the real split half.

    Args:
        result: what `evae.evaluation.evaluate` returned.
        name: of the metric in the result's records.
        ax: axes to draw on; those of a new figure if None.
        group: of the records, such as "robust" or "perturbation".

    Returns:
        The axes. Bars of distances over several orders of magnitude stand on a logarithmic axis.

    Raises:
        EvaeError: a metric that the evaluation did not compute.
    """
    summary = result.summary()
    own_group = summary[summary["group"] == group]
    found = own_group[own_group["metric"] == name].drop_duplicates("system").dropna(subset="value")
    if found.empty:
        known = sorted(set(own_group["metric"])) or sorted(set(summary["group"]))
        raise EvaeError(f"no metric '{name}' in '{group}'. {near_matches(name, known)}")
    fact = BY_NAME[name]
    values = found.set_index("system")["value"].sort_values(key=fact.badness, ascending=False)
    colour = {MODEL: GENERATED, SPLIT_HALF: FLOOR}
    with axes(ax, height=0.8 + 0.3 * len(values)) as own:
        own.barh(values.index, values, color=[colour.get(system, BASELINE) for system in values.index], height=0.7)
        if values.min() > 0 and values.max() / values.min() > 100:
            own.set_xscale("log")
        own.set(xlabel=fact.heading)
        own.margins(y=0.02)
        return own


def ranking(table: pd.DataFrame, ax: Axes | None = None, *, group: str | None = None, n: int = 10) -> Axes:
    """Draw which perturbations explain cells best.

    Args:
        table: what `Pipeline.rank_perturbations` returned.
        ax: axes to draw on; those of a new figure if None.
        group: the group of cells to draw; may be left out where there is one.
        n: perturbations to draw, the best ones.

    Returns:
        The axes.

    Raises:
        EvaeError: no such group, or several and none named.
    """
    names = [str(name) for name in table["group"].unique()]
    if group is None and len(names) > 1:
        raise EvaeError(f"the table ranks {len(names)} groups; name one, such as group='{names[0]}'.")
    if group is not None and group not in names:
        raise EvaeError(f"no group '{group}' in the table. {near_matches(group, names)}")
    part = table[table["group"].astype(str) == (group or names[0])].head(n).iloc[::-1]
    with axes(ax, height=0.8 + 0.3 * len(part)) as own:
        own.barh(part["perturbation"].astype(str), part["over_control"].to_numpy(), color=GENERATED, height=0.7)
        own.axvline(0, color="black", lw=0.8)
        own.set(xlabel="log-likelihood over the control's, nats a cell", title=group or "")
        return own
