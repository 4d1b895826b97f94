"""Pictures of tables: the systems of an evaluation by one metric, perturbations by how well they explain cells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from evae.common.figures import BASELINE, FLOOR, GENERATED
from evae.common.messages import number_of
from evae.evaluation.metrics.facts import BY_NAME
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.systems.names import MODEL, SPLIT_HALF
from evae.models.contract_evae import EvaeError, near_matches
from evae.plot.axes import axes

NUMBERED = 3  # ranks that are written out


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
        raise EvaeError(f"the table ranks {number_of(len(names), 'group')}; name one, such as group='{names[0]}'.")
    if group is not None and group not in names:
        raise EvaeError(f"no group '{group}' in the table. {near_matches(group, names)}")
    part = table[table["group"].astype(str) == (group or names[0])].head(n).iloc[::-1]
    with axes(ax, height=0.8 + 0.3 * len(part)) as own:
        own.barh(part["perturbation"].astype(str), part["over_control"].to_numpy(), color=GENERATED, height=0.7)
        own.axvline(0, color="black", lw=0.8)
        own.set(xlabel="log-likelihood over the control's, nats a cell", title=group or "")
        return own


def confusion(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the ranks of all perturbations for groups of cells whose perturbation is known.

    Args:
        table: what `Pipeline.rank_perturbations` returned, with the column of true perturbations as `groupby`.
        ax: axes to draw on; those of a new figure if None.

    Returns:
        The axes: a row for each group, a column for each perturbation, the best ones dark and numbered, the true one
        framed. The title counts how often it is the first and among the first three.

    Raises:
        EvaeError: no group has the name of a ranked perturbation.
    """
    ranks = ranks_of(table)
    places = true_places(table)
    names = [*places.index, *(str(name) for name in ranks.columns if name not in places.index)]
    groups = [*places.index, *(str(name) for name in ranks.index if name not in places.index)]
    shown = ranks.loc[groups, names].to_numpy()
    with axes(ax, width=1.8 + 0.22 * len(names), height=1.6 + 0.22 * len(groups)) as own:
        own.imshow(shown, cmap="Blues_r", vmin=1, vmax=max(len(names), 2), aspect="auto")
        for row, column in zip(*np.nonzero(shown <= NUMBERED), strict=True):
            dark = shown[row, column] < 0.6 * len(names)
            colour = "white" if dark else "black"
            own.text(column, row, f"{shown[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        for at in range(len(places)):
            own.add_patch(Rectangle((at - 0.5, at - 0.5), 1, 1, fill=False, edgecolor=GENERATED, lw=1.6))
        own.set_xticks(range(len(names)), names, rotation=90)
        own.set_yticks(range(len(groups)), groups)
        own.tick_params(length=0, labelsize=8)
        own.set(xlabel="ranked perturbation", ylabel="true perturbation", title=said_of(places))
        return own


def ranks_of(table: pd.DataFrame) -> pd.DataFrame:
    """Rank of every perturbation, 1 the best, (groups, perturbations)."""
    rank = table.groupby("group", sort=False)["over_control"].rank(ascending=False, method="first")
    labels = {name: table[name].astype(str) for name in ("group", "perturbation")}
    wide = table.assign(**labels, rank=rank).pivot(index="group", columns="perturbation", values="rank")
    order = {name: list(dict.fromkeys(values)) for name, values in labels.items()}
    return wide.loc[order["group"], sorted(order["perturbation"])]


def true_places(table: pd.DataFrame) -> pd.Series:
    """Rank of the true perturbation of every group that has the name of one, the best placed first.

    Raises:
        EvaeError: there is no such group.
    """
    ranks = ranks_of(table)
    known = [name for name in ranks.index if name in ranks.columns]
    if not known:
        raise EvaeError(
            "no group has the name of a ranked perturbation; rank with groupby=..., the column of true perturbations."
        )
    return pd.Series({name: int(ranks.loc[name, name]) for name in known}).sort_values(kind="stable")


def said_of(places: "pd.Series[int]") -> str:
    """How often the true perturbation is found, in a few words."""
    first, three = int((places == 1).sum()), int((places <= 3).sum())
    return f"true one first for {first}, among the first 3 for {three} of {len(places)}"
