"""A user's file or AnnData becomes blocks of raw counts.

Enters: an h5ad file or an AnnData. Leaves: CSR blocks of raw counts with gene names and labels.
May import: the input contract.
"""
