"""A split of a dataset folder as AnnData, for evaluation and for looking at it; small splits only."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp

from evae.data.batches import flat_values
from evae.data.dataset import DatasetInfo, resolve_dataset
from evae.models.contract_evae import EvaeError, near_matches


def read_split(path_or_id: str | Path, split: str) -> ad.AnnData:
    """All cells of a split in memory.

    Args:
        path_or_id: dataset folder or Hub id.
        split: "train", "validation" or "test".

    Returns:
        AnnData, X (cells, genes) CSR int32 raw counts; obs `perturbation` and `cell_type` (categorical, with
        all names of the vocabularies), `library_size` (total over the panel) and
        `full_library_size` (total over all genes of the source file); var `ensembl_id`.

    Raises:
        EvaeError: no such split, or no cells in it.
    """
    info = DatasetInfo.load(path_or_id)
    if split not in info.n_cells:
        raise EvaeError(f"no split '{split}'. {near_matches(split, list(info.n_cells))}")
    if not info.n_cells[split]:
        raise EvaeError(f"the split '{split}' of {path_or_id} holds no cells; prepare it with a split.")
    folder = resolve_dataset(path_or_id, split)
    paths = [s["path"] for s in info.statistics["shards"] if s["path"].startswith(f"data/{split}-")]
    blocks, frames = [], []
    for path in paths:
        try:
            table = pq.read_table(folder / path)
        except OSError as error:
            raise EvaeError(f"{folder / path} cannot be read ({error}); fetch or make the dataset anew.") from error
        genes, indptr = flat_values(table["genes"], np.dtype(info.statistics["gene_dtype"]))
        counts, _ = flat_values(table["counts"], np.dtype(info.statistics["count_dtype"]))
        shape = (table.num_rows, len(info.genes))
        blocks.append(sp.csr_matrix((counts.astype(np.int32), genes.astype(np.int32), indptr), shape=shape))
        frames.append(table.select(["perturbation", "cell_type", "library_size", "cell_id"]).to_pandas())
    X = sp.vstack(blocks, format="csr")
    labels = pd.concat(frames, ignore_index=True)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical.from_codes(labels["perturbation"], pd.Index(info.perturbations)),
            "cell_type": pd.Categorical.from_codes(labels["cell_type"], pd.Index(info.cell_types)),
            "library_size": np.asarray(X.sum(1)).ravel().astype(np.int64),
            "full_library_size": labels["library_size"].to_numpy(),
        }
    )
    obs.index = pd.Index(labels["cell_id"].astype(str).to_numpy())
    return ad.AnnData(X=X, obs=obs, var=pd.DataFrame({"ensembl_id": info.ensembl_ids}, index=info.genes))
