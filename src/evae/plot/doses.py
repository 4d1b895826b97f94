"""Dose-response curves of predicted cells, and of real ones beside them."""

import math
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evae.common.figures import GUIDE, PALETTE, look, save
from evae.data.reading.anndata_file import as_anndata
from evae.data.reading.labels import label_texts
from evae.evaluation.cells.normalised import mean_of
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.treatments_evae import readings
from evae.plot.axes import axes
from evae.plot.cells import CellData, normalised

PREDICTED, CONTROLS, REAL = "the predictions", "the controls", "the real cells"


def dose_response(
    predicted: CellData,
    controls: CellData,
    real: CellData | None = None,
    ax: Axes | None = None,
    *,
    gene: str | None = None,
    cell_type_key: str = "cell_type",
) -> Axes:
    """Draw how cells change with the dose, a line for every agent (and time).

    Without a gene, the height is how far the mean moves from the controls in the direction in which the agent moves it
    most over all doses, real ones where there are real cells. Changes are those within a cell type, averaged over cell
    types.

    Args:
        predicted: what `Pipeline.predict` returned for several doses; `obs` has `agent` and `dose`.
        controls: the controls that it was predicted from, raw counts.
        real: real cells, raw counts, drawn as crosses; `obs` has `agent` and `dose`, or labels of treatments, such as
            "DrugA 10 uM 24 h", in `perturbation`.
        ax: axes to draw on; those of a new figure if None.
        gene: the gene to draw, as `predicted` names it; its mean log1p CP10K is the height.
        cell_type_key: obs column of the cell type in all of them; where one lacks it, all count as one.

    Returns:
        The axes. Hollow points are doses that training did not see.

    Raises:
        EvaeError: predictions without doses, an unknown gene, or cells that are not raw counts.
    """
    data = {PREDICTED: as_anndata(predicted, PREDICTED), CONTROLS: as_anndata(controls, CONTROLS)}
    data |= {} if real is None else {REAL: as_anndata(real, REAL)}
    values, genes = normalised(data, most=None)
    if gene is not None and gene not in genes:
        raise EvaeError(f"no gene '{gene}' that all cells have. {near_matches(gene, genes)}")
    together = not all(cell_type_key in cells.obs for cells in data.values())
    kinds = {name: _kinds(cells, cell_type_key, together) for name, cells in data.items()}
    curves = {
        name: _curves(data[name], values[name], kinds[name], values[CONTROLS], kinds[CONTROLS], gene is not None)
        for name in data
        if name != CONTROLS
    }
    ends: dict[str, tuple[str, float, float]] = {}
    with axes(ax, width=5.4, height=3.8) as own:
        for colour, (name, points) in zip(_colours(), curves[PREDICTED].items(), strict=False):
            true = curves.get(REAL, {}).get(name, [])
            way = _direction(true or points) if gene is None else np.eye(len(genes))[genes.index(str(gene))]
            ends[name] = (colour, *_draw(own, colour, points, true, way))
        base = 0.0 if gene is None else float(mean_of(values[CONTROLS])[genes.index(gene)])
        own.axhline(base, color=GUIDE, lw=1, ls=(0, (3, 3)), zorder=1)
        own.annotate(
            "controls", (0.01, base), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="grey"
        )
        units = sorted(set(_treatments(data[PREDICTED])["unit"]) - {""})
        unit = " and ".join(units)
        height = f"mean of {gene}, log1p CP10K" if gene else "change of the mean along the curve,\nlog1p CP10K"
        own.set(xscale="log", xlabel=f"dose, {unit}" if unit else "dose", ylabel=height)
        own.margins(x=0.16)
        _name(own, ends)
        if real is not None:
            own.scatter([], [], marker="x", color="grey", label="real")
            own.scatter([], [], marker="o", color="grey", label="predicted")
            own.legend(loc="best")
        return own


def save_dose_response(path: str | Path, predicted: CellData, controls: CellData, gene: str | None = None) -> Path:
    """Write the picture of `dose_response` as a PNG, whole or not at all."""
    with look():
        figure = Figure(figsize=(5.4, 3.8), layout="constrained")
        dose_response(predicted, controls, ax=figure.add_subplot(), gene=gene)
        return save(figure, Path(path))


Point = tuple[float, np.ndarray, bool]  # dose, change of the mean (genes,), whether training saw it


def _curves(
    cells: ad.AnnData, values: sp.csr_matrix, kinds: np.ndarray, controls: sp.csr_matrix, of_control: np.ndarray,
    whole: bool,
) -> dict[str, list[Point]]:  # fmt: skip
    """Agent (and time) -> its points in the order of doses; `whole` keeps means, in the place of changes."""
    table = _treatments(cells)
    base = {kind: 0.0 if whole else mean_of(controls[of_control == kind]) for kind in np.unique(of_control)}
    found: dict[str, list[Point]] = {}
    for (name, dose), rows in table.groupby(["name", "dose"], observed=True).indices.items():
        own = [kind for kind in np.unique(kinds[rows]) if kind in base]
        if not own:
            raise EvaeError(f"there are no controls of the cell type of '{name}'; give those it was predicted from.")
        change = np.mean([mean_of(values[rows[kinds[rows] == kind]]) - base[kind] for kind in own], axis=0)
        found.setdefault(str(name), []).append((float(dose), change, bool(table["seen"].iloc[rows[0]])))
    if not found:
        raise EvaeError("the cells have no doses (obs columns agent and dose); predict with dose=[0.5, 1, 10].")
    return found


def _treatments(cells: ad.AnnData) -> pd.DataFrame:
    """`name` of the curve, `dose` (NaN for none), its `unit` and `seen` of every cell."""
    if "agent" in cells.obs and "dose" in cells.obs:
        agents, doses = cells.obs["agent"].astype(str).to_numpy(), cells.obs["dose"].to_numpy(dtype=float)
        times = cells.obs["time"].to_numpy(dtype=float) if "time" in cells.obs else np.full(len(doses), np.nan)
        units = label_texts(cells.obs["dose_unit"]) if "dose_unit" in cells.obs else np.full(len(doses), "")
    else:
        labels = label_texts(cells.obs["perturbation"]) if "perturbation" in cells.obs else np.zeros(0, dtype=object)
        said = {label: list(readings(label))[-1] for label in set(labels)} if len(labels) else {}
        agents = np.array([said[label].agent for label in labels], dtype=object)
        doses, times = (np.array([getattr(said[x], n) for x in labels], dtype=float) for n in ("dose", "time"))
        units = np.array([said[x].dose_unit for x in labels], dtype=object)
    several = len(np.unique(times[~np.isnan(times)])) > 1
    names = [f"{agent} {time:g} h" if several else agent for agent, time in zip(agents, times, strict=True)]
    seen = cells.obs["support"] != "seen otherwise" if "support" in cells.obs else np.full(len(doses), True)
    return pd.DataFrame({"name": names, "dose": doses, "unit": units, "seen": np.asarray(seen)})


def _kinds(cells: ad.AnnData, key: str, together: bool) -> np.ndarray:
    return np.full(cells.n_obs, "", dtype=object) if together else label_texts(cells.obs[key])


def _direction(points: list[Point]) -> np.ndarray:
    """The direction in which the changes at all doses are largest, of length 1, (genes,).

    Of all, as that of one dose alone would follow the noise of this dose, which would then seem to move most.
    """
    changes = np.stack([change for _, change, _ in points])
    way: np.ndarray = np.linalg.svd(changes, full_matrices=False)[2][0]
    return way if (changes @ way).sum() >= 0 else -way


def _draw(ax: Axes, colour: str, points: list[Point], real: list[Point], way: np.ndarray) -> tuple[float, float]:
    """Draw one curve; where it ends."""
    doses, heights = [dose for dose, _, _ in points], [float(change @ way) for _, change, _ in points]
    ax.plot(doses, heights, color=colour, lw=1.4, zorder=2)
    faces = [colour if seen else "white" for _, _, seen in points]
    ax.scatter(doses, heights, s=28, c=faces, edgecolors=colour, linewidths=1.4, zorder=3)
    ax.scatter([dose for dose, _, _ in real], [float(change @ way) for _, change, _ in real], marker="x", color=colour)
    return doses[-1], heights[-1]


def _name(ax: Axes, ends: dict[str, tuple[str, float, float]]) -> None:
    """Write the names of curves, each with its colour, beside their ends, none over another."""
    low, high = ax.get_ylim()
    gap, place = (high - low) / 22, -math.inf
    for name, (colour, dose, height) in sorted(ends.items(), key=lambda item: item[1][2]):
        place = max(height, place + gap)
        ax.annotate(name, (dose, place), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def _colours() -> Iterator[str]:
    while True:
        yield from PALETTE
