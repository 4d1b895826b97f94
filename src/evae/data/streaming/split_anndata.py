"""A split of a dataset folder as AnnData, or a run of cells at a time where it is too large for that."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from evae.data.format import AnyDataset, Dataset
from evae.data.rows import RowFormat
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    import anndata as ad  # 26 MB, which files do without


class DatasetSplit:
    """The cells of a split in their stored order, of which only a row group is ever in memory.

    Args:
        dataset: a folder, a Hub id or an open `Dataset`; shards on the Hub are fetched when they are first read.
        split: "train", "validation" or "test".

    Attributes: `info` (the dataset's), `split`, `n_cells`.

    Raises:
        EvaeError: no such split, or no cells in it; reading raises it where a shard cannot be read.
    """

    def __init__(self, dataset: AnyDataset, split: str):
        dataset = Dataset.open(dataset)
        self.info, self.split, self.n_cells = dataset.info, split, dataset.cells_of(split)
        self._store, self._rows = dataset.store, RowFormat.of(dataset.info)
        step = self.info.statistics["row_group_rows"]
        self._groups = [
            (shard, i, min(step, rows - i * step))
            for shard, rows in self.info.shards(split)
            for i in range(-(-rows // step))
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

    def batch_ids(self) -> np.ndarray:
        """The experimental batch of every cell, int64 (cells,); all 0 where the dataset has none."""
        if not self.info.statistics.get("batches"):
            return np.zeros(self.n_cells, dtype=np.int64)
        parts = [self._read(group, ["batch"])["batch"].to_numpy() for group in range(len(self._groups))]
        return np.concatenate(parts).astype(np.int64)

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
            table = self._read(group, self._rows.columns)
            cells = self._rows.cells(table)
            shape = (table.num_rows, len(self.info.genes))
            parts = (cells.whole_counts().astype(np.int32), cells.indices().astype(np.int32), cells.ends)
            self._last = group, sp.csr_matrix(parts, shape=shape)
        return self._last[1]

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        import pyarrow.parquet as pq

        shard, index, _ = self._groups[group]
        if group + 1 < len(self._groups):
            self._store.expect(self._groups[group + 1][0])
        path = self._store.path(shard)
        try:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(index, columns=columns)
        except OSError as error:
            raise EvaeError(f"{path} cannot be read ({error}); fetch or make the dataset anew.") from error


def read_split(dataset: AnyDataset, split: str) -> "ad.AnnData":
    """All cells of a split in memory.

    Args:
        dataset: a folder, a Hub id or an open `Dataset`.
        split: "train", "validation" or "test".

    Returns:
        AnnData, X (cells, genes) CSR int32 raw counts; obs `perturbation` and `cell_type` (categorical, with
        all names of the vocabularies), `library_size` (total over the panel) and
        `full_library_size` (total over all genes of the source file); var `ensembl_id`.

    Raises:
        EvaeError: no such split, or no cells in it.
    """
    cells = DatasetSplit(dataset, split)
    X = cells.counts(0, cells.n_cells)
    obs = cells.labels().rename(columns={"library_size": "full_library_size"})
    obs.insert(2, "library_size", np.asarray(X.sum(1)).ravel().astype(np.int64))
    import anndata as ad

    return ad.AnnData(X=X, obs=obs, var=pd.DataFrame({"ensembl_id": cells.info.ensembl_ids}, index=cells.info.genes))
