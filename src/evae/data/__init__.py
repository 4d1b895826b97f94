"""Data: h5ad files become a dataset folder, and a dataset folder or Hub dataset becomes batches of cells.

Enters: h5ad files of raw counts, dataset folders, Hub ids, and `IterableDataset`s of HF `datasets`. Leaves: dataset
folders, sparse batches, splits as AnnData. The files beside the inner rooms say what a dataset folder is (`format`),
how a cell stands in it (`rows`) and where its shards lie (`store`). May import: `common` and the input contract.

The public names are imported when they are first asked for, so that `evae prepare` need not wait for torch.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.data.format import Dataset, DatasetInfo
    from evae.data.preparing.prepare import prepare_dataset
    from evae.data.streaming.loader import CellLoader
    from evae.data.streaming.split_anndata import DatasetSplit, read_split
    from evae.data.streaming.stream import CellStream

__all__ = ["CellLoader", "CellStream", "Dataset", "DatasetInfo", "DatasetSplit", "prepare_dataset", "read_split"]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(
        __name__,
        {
            "CellLoader": "streaming.loader",
            "CellStream": "streaming.stream",
            "Dataset": "format",
            "DatasetInfo": "format",
            "DatasetSplit": "streaming.split_anndata",
            "prepare_dataset": "preparing.prepare",
            "read_split": "streaming.split_anndata",
        },
    )
