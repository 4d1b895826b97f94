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
        (cells, panel) CSR of the same values, indices sorted.
    """
    place = columns[counts.indices]
    inside = place >= 0
    ends = np.concatenate([[0], np.cumsum(inside)])[counts.indptr]
    kept = sp.csr_matrix((counts.data[inside], place[inside], ends), shape=(counts.shape[0], n_panel))
    kept.sort_indices()
    return kept
