"""A user's file or AnnData becomes blocks of raw counts.

Enters: an AnnData, or a file or folder of any format that `formats` lists. Leaves: CSR blocks of raw counts, (cells,
genes), with genes and labels. May import: `common` and the input contract.
"""

from evae.data.reading.anndata_counts import AnnDataCounts, Counts, open_counts
from evae.data.reading.anndata_file import as_anndata, read_h5ad
from evae.data.reading.file_counts import FileCounts

__all__ = ["AnnDataCounts", "Counts", "FileCounts", "as_anndata", "open_counts", "read_h5ad"]
