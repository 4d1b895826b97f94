"""Pictures of a table of effects: how much genes change, and how surely."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from evae.common.figures import BASELINE, GENERATED, GUIDE, REAL
from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError
from evae.plot.axes import axes

FDR = 0.05


def volcano(table: pd.DataFrame, ax: Axes | None = None, *, n_named: int = 10) -> Axes:
    """Draw the fold change of every gene against its p-value.

    Args:
        table: what `Pipeline.effects` returned, of one cell type and perturbation.
        ax: axes to draw on; those of a new figure if None.
        n_named: genes to name, those of the smallest p-values.

    Returns:
        The axes: genes with FDR < 5% as orange triangles up (more) and blue ones down (less), the others grey. Genes
        that one of the two sides lacks altogether stand at the edge.

    Raises:
        EvaeError: a table of several pairs, or of none.
    """
    pairs = table[["cell_type", "perturbation"]].drop_duplicates()
    if len(pairs) != 1:
        raise EvaeError(
            f"the table holds {number_of(len(pairs), 'pair')} of cell type and perturbation; keep the rows of one."
        )
    fold = table["log2_fold_change"].to_numpy(float)
    height = -np.log10(np.maximum(table["p_value"].to_numpy(float), 1e-300))
    sure = table["fdr"].to_numpy(float) < FDR
    both = (table["share"].to_numpy(float) > 0) & (table["share_control"].to_numpy(float) > 0)
    near = both & sure if (both & sure).any() else both
    edge = 1.1 * float(np.abs(fold[near]).max(initial=0.5))  # a gene that one side lacks has no bounded fold change
    shown = np.clip(fold, -edge, edge)
    with axes(ax) as own:
        own.axvline(0, color=GUIDE, lw=0.8, zorder=0)
        own.scatter(
            shown[~sure],
            height[~sure],
            s=10,
            color=BASELINE,
            lw=0,
            alpha=0.5,
            label=f"{(~sure).sum():,} unsure (FDR ≥ {FDR:.0%})",
        )
        for rows, colour, marker, word in (
            (sure & (fold > 0), GENERATED, "^", "rise"),
            (sure & (fold <= 0), REAL, "v", "fall"),
        ):
            label = f"{rows.sum():,} {word}"
            own.scatter(shown[rows], height[rows], s=16, color=colour, marker=marker, lw=0, alpha=0.8, label=label)
        _name_genes(own, table["gene"].astype(str).to_numpy(), shown, height, np.flatnonzero(sure), n_named)
        own.set(xlabel="log2 fold change over the controls", ylabel="-log10 p")
        own.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, columnspacing=0.8, handletextpad=0.0)
        own.set_xlim(-1.35 * edge, 1.35 * edge)  # room for names
        own.margins(y=0.06)
        return own


def _name_genes(ax: Axes, genes: np.ndarray, x: np.ndarray, y: np.ndarray, rows: np.ndarray, n_named: int) -> None:
    """The names of the surest genes, leaving out those that would cover one another."""
    gap = max(float(np.ptp(y)), 1e-9) / 22
    taken: list[tuple[bool, float]] = []
    for row in rows[np.lexsort((-np.abs(x[rows]), -y[rows]))]:
        side = bool(x[row] > 0)
        if len(taken) < n_named and all(other != side or abs(height - y[row]) >= gap for other, height in taken):
            taken.append((side, float(y[row])))
            ax.annotate(
                genes[row], (x[row], y[row]), (5 if side else -5, 0), textcoords="offset points", fontsize=8,
                ha="left" if side else "right", va="center", parse_math=False,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
