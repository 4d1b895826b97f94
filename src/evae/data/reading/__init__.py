"""A user's file or AnnData becomes blocks of raw counts.

Enters: an h5ad file or an AnnData. Leaves: CSR blocks of raw counts, (cells, genes), with genes and labels.
May import: the input contract.
"""

from evae.data.reading.anndata_counts import AnnDataCounts, Counts, open_counts
from evae.data.reading.anndata_file import as_anndata, read_h5ad
from evae.data.reading.h5ad import H5adCounts

__all__ = ["AnnDataCounts", "Counts", "H5adCounts", "as_anndata", "open_counts", "read_h5ad"]
