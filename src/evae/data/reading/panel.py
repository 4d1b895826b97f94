"""Counts over a user's genes become counts over a panel."""

import numpy as np
import scipy.sparse as sp


def over_panel(counts: sp.csr_matrix, columns: np.ndarray, n_panel: int) -> sp.csr_matrix:
    """The columns of a CSR matrix that belong to a panel, in its order.

    Args:
        counts: (cells, genes) of the user.
        columns: place in the panel of every gene, int64 (genes,); -1 leaves the gene out.
        n_panel: genes of the panel.

    Returns:
        (cells, panel) CSR of the same values, indices sorted; `counts` themselves where they are that.
    """
    shape = counts.shape[0], n_panel
    if np.array_equal(columns, np.arange(n_panel)) and counts.has_sorted_indices:
        return counts
    place = columns.astype(counts.indices.dtype)[counts.indices]
    if (columns >= 0).all():
        kept = sp.csr_matrix((counts.data, place, counts.indptr), shape=shape)
    else:
        inside = place >= 0
        ends = np.concatenate([[0], np.cumsum(inside)])[counts.indptr]
        kept = sp.csr_matrix((counts.data[inside], place[inside], ends), shape=shape)
    return kept if kept.has_sorted_indices else kept.sorted_indices()  # a copy: the values may be those of `counts`
