"""What an entry is predicted from: the control cells of its contexts, and effects that the user knows."""

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.challenge.lists import TARGET, EntryPlan
from evae.common.messages import number_of
from evae.data.reading.anndata_file import read_chosen
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.labels import label_texts
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import GeneColumns, match_genes


@dataclass(frozen=True)
class Controls:
    """The control cells of an entry.

    Attributes:
        source: all cells of the file, not read yet.
        rows: context -> rows of its controls.
        columns: column of every gene of the entry, (genes,).
    """

    source: FileCounts
    rows: dict[str, np.ndarray]
    columns: np.ndarray

    @classmethod
    def open(cls, path: Path, plan: EntryPlan, control: str, context_key: str, target_key: str) -> "Controls":
        """Find the controls of every context in an h5ad file.

        Raises:
            EvaeError: a column, a context or a gene is not there.
        """
        source = FileCounts(path)
        obs = source.obs
        known = list(obs)
        if context_key not in known:
            raise EvaeError(f"{path} has no obs column '{context_key}'; name it with --context-key. "
                            f"{near_matches(context_key, known)}")  # fmt: skip
        contexts = label_texts(obs[context_key])
        is_control = np.ones(source.n_cells, dtype=bool)
        if target_key != TARGET and target_key not in known:
            raise EvaeError(f"{path} has no obs column '{target_key}'; name it with --perturbation-key, or leave that "
                            f"out where all cells are controls. {near_matches(target_key, known)}")  # fmt: skip
        if target_key in known:
            is_control = label_texts(obs[target_key]) == control
        rows = {c: np.flatnonzero(is_control & (contexts == c)) for c in plan.contexts}
        if missing := [c for c, found in rows.items() if not len(found)]:
            raise EvaeError(
                f"{path} has no '{control}' cells of context {', '.join(missing)} in '{context_key}'; it has "
                f"{', '.join(sorted(set(contexts[is_control]))[:5]) or 'no controls at all'}."
            )
        columns = match_genes(GeneColumns.of_panel(plan.genes, None), source.gene_columns)
        if (columns < 0).any():
            first = ", ".join(plan.genes[i] for i in np.flatnonzero(columns < 0)[:3])
            raise EvaeError(f"{path} lacks {(columns < 0).sum()} of the entry's {number_of(len(columns), 'gene')} "
                            f"(first: {first}); give the challenge's own controls.")  # fmt: skip
        return cls(source, rows, columns)

    def read(self, context: str, limit: int | None = None) -> tuple[ad.AnnData, sp.csr_matrix]:
        """The controls of a context in memory, and their counts over the entry's genes, (cells, genes), checked."""
        cells = read_chosen(self.source, self.rows[context][:limit])
        return cells, sp.csr_matrix(cells.X)[:, self.columns]


def effects_of_entry(table: pd.DataFrame, plan: EntryPlan) -> pd.DataFrame:
    """Log2 fold changes over the entry's genes, a row a target gene; 0 where the table has no such gene.

    Args:
        table: genes by targets or the other way round.

    Raises:
        EvaeError: no gene or no target of the entry in it, names that stand twice, or values that are no fold changes.
    """
    genes, targets = set(plan.genes), set(plan.targets)
    table = table.set_axis(table.index.astype(str), axis=0).set_axis(table.columns.astype(str), axis=1)
    if len(genes.intersection(table.index)) > len(genes.intersection(table.columns)):
        table = table.T
    if table.index.has_duplicates or table.columns.has_duplicates:
        raise EvaeError("the effects name a target or a gene twice; keep one of each.")
    if not genes.intersection(table.columns) or not targets.intersection(table.index):
        raise EvaeError("the effects name no gene or no target of the entry; give a row a target, a column a gene.")
    found = table.reindex(columns=plan.genes).astype(float).fillna(0.0)
    if not np.isfinite(found).all().all():
        raise EvaeError("the effects hold infinite values; give log2 fold changes.")
    return found
