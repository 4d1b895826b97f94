"""A split of a dataset folder as AnnData, or a run of cells at a time where it is too large for that."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp

from evae.data.streaming.loader import DatasetInfo, resolve_dataset
from evae.data.streaming.row_groups import flat_values
from evae.models.contract_evae import EvaeError, near_matches


class DatasetSplit:
    """The cells of a split in their stored order, of which only a row group is ever in memory.

    Args:
        path_or_id: dataset folder or Hub id.
        split: "train", "validation" or "test".

    Attributes: `info` (the dataset's), `split`, `n_cells`.

    Raises:
        EvaeError: no such split, or no cells in it; reading raises it where a shard cannot be read.
    """

    def __init__(self, path_or_id: str | Path, split: str):
        self.info, self.split = DatasetInfo.load(path_or_id), split
        if split not in self.info.n_cells:
            raise EvaeError(f"no split '{split}'. {near_matches(split, list(self.info.n_cells))}")
        self.n_cells = self.info.n_cells[split]
        if not self.n_cells:
            raise EvaeError(f"the split '{split}' of {path_or_id} holds no cells; prepare it with a split.")
        folder = resolve_dataset(path_or_id, split)
        shards = [s for s in self.info.statistics["shards"] if s["path"].startswith(f"data/{split}-")]
        step = self.info.statistics["row_group_rows"]
        self._groups = [
            (folder / s["path"], i, min(step, s["rows"] - i * step))
            for s in shards
            for i in range(-(-s["rows"] // step))
        ]
        self._ends = np.cumsum([0, *[rows for *_, rows in self._groups]])  # (row groups + 1,)
        self._last: tuple[int, sp.csr_matrix] | None = None

    def labels(self) -> pd.DataFrame:
        """`perturbation` and `cell_type` (categorical, with the whole vocabularies), `library_size` (over all
        genes of the source file), indexed by the cells' names."""
        columns = ["perturbation", "cell_type", "library_size", "cell_id"]
        parts = [self._read(group, columns).to_pandas() for group in range(len(self._groups))]
        frame = pd.concat(parts, ignore_index=True)
        vocabularies = {"perturbation": self.info.perturbations, "cell_type": self.info.cell_types}
        for name, words in vocabularies.items():
            frame[name] = pd.Categorical.from_codes(frame[name], pd.Index(words))
        frame.index = pd.Index(frame.pop("cell_id").astype(str).to_numpy())
        return frame

    def counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Raw counts of the cells start..stop, (cells, genes) CSR int32."""
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right") - 1
        parts = []
        for group in range(first, last + 1):
            offset = int(self._ends[group])
            parts.append(self._group_counts(group)[max(start - offset, 0) : stop - offset])
        return sp.vstack(parts, format="csr")

    def _group_counts(self, group: int) -> sp.csr_matrix:
        if self._last is None or self._last[0] != group:
            table = self._read(group, ["genes", "counts"])
            genes, indptr = flat_values(table["genes"], np.dtype(self.info.statistics["gene_dtype"]))
            counts, _ = flat_values(table["counts"], np.dtype(self.info.statistics["count_dtype"]))
            shape = (table.num_rows, len(self.info.genes))
            parts = (counts.astype(np.int32), genes.astype(np.int32), indptr)
            self._last = group, sp.csr_matrix(parts, shape=shape)
        return self._last[1]

    def _read(self, group: int, columns: list[str]):
        path, index, _ = self._groups[group]
        try:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(index, columns=columns)
        except OSError as error:
            raise EvaeError(f"{path} cannot be read ({error}); fetch or make the dataset anew.") from error


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
    cells = DatasetSplit(path_or_id, split)
    X = cells.counts(0, cells.n_cells)
    obs = cells.labels().rename(columns={"library_size": "full_library_size"})
    obs.insert(2, "library_size", np.asarray(X.sum(1)).ravel().astype(np.int64))
    return ad.AnnData(X=X, obs=obs, var=pd.DataFrame({"ensembl_id": cells.info.ensembl_ids}, index=cells.info.genes))
