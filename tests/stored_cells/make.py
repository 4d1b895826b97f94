"""Writes small files of the same 48 cells with the writer that is installed, whatever its version.

    python make.py FOLDER            # with anndata 0.6 to 0.13: FOLDER/anndata-VERSION.h5ad
    python make.py FOLDER loom       # with loompy
    python make.py FOLDER h5mu       # with mudata
    python make.py FOLDER zstd       # with hdf5plugin

Runs on Python 3.6 to 3.13. `README.md` beside it says which versions wrote the stored files.
"""

import sys

import numpy as np
import pandas as pd
import scipy.sparse as sp

N_GENES = 60
KINDS = [(t, p, c) for t in ("type_A", "type_B") for p in ("control", "KO-GENE0039", "KO-GENE0049") for c in ("a", "b")]


def cells():
    """Counts (48, 60) CSR float32, obs and var; the genes are those of the tiny checkpoint."""
    drawn = np.random.RandomState(7)
    labels = [kind for kind in KINDS for _ in range(4)]
    rates = drawn.gamma(0.6, 0.8, N_GENES)
    counts = drawn.poisson(rates * drawn.gamma(4.0, 0.25, (len(labels), 1)))
    counts[:, 0] += 1  # no cell is empty
    for cell, (_, perturbation, _) in enumerate(labels):
        counts[cell, 38] += 4 * (perturbation == "KO-GENE0039")
        counts[cell, 48] += 4 * (perturbation == "KO-GENE0049")
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical([p for _, p, _ in labels]),
            "cell_type": pd.Categorical([t for t, _, _ in labels]),
            "condition": ["Treated" if c == "a" else "Untreated" for _, _, c in labels],
            "dose": np.arange(len(labels), dtype=np.int32) % 3,
            "gap": pd.Categorical([None if i % 4 == 3 else "batch" + str(i % 2) for i in range(len(labels))]),
        },
        index=["cell-" + str(i) for i in range(len(labels))],
    )
    ids = ["ENSG" + str(7 * g).zfill(11) for g in range(N_GENES)]
    names = ["GENE" + str(g).zfill(4) for g in range(1, N_GENES + 1)]
    var = pd.DataFrame({"gene_ids": ids, "highly_variable": np.arange(N_GENES) % 2 == 0}, index=names)
    return sp.csr_matrix(counts.astype(np.float32)), obs, var


def annotated():
    import anndata as ad

    counts, obs, var = cells()
    whole = ad.AnnData(counts, obs=obs, var=var)
    whole.raw = ad.AnnData(2 * counts, obs=obs, var=var)  # twice the counts, to tell the two apart
    return whole


def write(folder, kind):
    if kind == "loom":
        import loompy

        counts, obs, var = cells()
        rows = {"Gene": var.index.values.astype(str), "Accession": var["gene_ids"].values.astype(str)}
        columns = {"CellID": obs.index.values.astype(str)}
        columns.update({c: obs[c].values.astype(str) for c in ("perturbation", "cell_type", "condition")})
        loompy.create(folder + "/loompy.loom", counts.T.toarray(), rows, columns)
    elif kind == "h5mu":
        import anndata as ad
        import mudata

        rna = annotated()
        proteins = ad.AnnData(rna.X[:, :3].copy(), obs=rna.obs[[]].copy(), var=rna.var[[]][:3].copy())
        proteins.var_names = ["CD3", "CD4", "CD8"]
        mudata.MuData({"rna": rna, "prot": proteins}).write(folder + "/mudata.h5mu")
    elif kind == "zstd":
        import hdf5plugin

        annotated().write_h5ad(folder + "/zstd.h5ad", compression=hdf5plugin.FILTERS["zstd"])
    else:
        import anndata as ad

        version = ".".join(ad.__version__.split(".")[:2])
        whole = annotated()
        getattr(whole, "write_h5ad", whole.write)(folder + "/anndata-" + version + ".h5ad", compression="gzip")


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "h5ad")
