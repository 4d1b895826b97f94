"""What comes out of an `IterableDataset` of HF `datasets` as checked rows of cells, see `evae.data.rows`."""

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from evae.data.format import Dataset
from evae.data.rows import COLUMNS, RowFormat, cell_features, flat_values
from evae.models.contract_evae import EvaeError, look_up

if TYPE_CHECKING:
    from datasets import Features

BYTE = np.dtype("u1")
NAME = "the stream of cells"
REMEDY = "filter such cells out, or map them."


class CellReader:
    """Checks tables of a stream, and numbers their labels as another dataset does.

    Args:
        features: of the stream.
        panel: in whose gene panel and vocabularies to count.

    Raises:
        EvaeError: the features are not those of cells over this panel.
    """

    def __init__(self, features: "Features | None", panel: Dataset):
        info = panel.info
        self._known = {"perturbation": info.perturbations, "cell_type": info.cell_types}
        own = cell_features(info.genes, *self._known.values())
        if features is None:
            raise EvaeError("the types of the cells' columns are lost; give map() of datasets features=cells.features.")
        if missing := [name for name in COLUMNS if name not in features]:
            raise EvaeError(
                f"the cells have no column {' and no '.join(missing)}; stream a dataset of `evae prepare`, "
                "and rename or remove none of its columns."
            )
        for name in ("genes", "counts"):
            if getattr(features[name], "dtype", None) != "binary":
                raise EvaeError(f"the column {name} of the cells must be binary; stream a dataset of `evae prepare`.")
        if features["genes"].id != own["genes"].id:
            raise EvaeError(
                f"the cells do not say that they count over the gene panel of {panel}; stream a dataset over the same "
                "panel, or prepare it anew where an older evae did."
            )
        self._names: dict[str, list[str]] = {}
        for name in self._known:
            if not getattr(features[name], "names", None):
                raise EvaeError(f"the column {name} of the cells must be a ClassLabel; see cast_column of datasets.")
            self._names[name] = features[name].names
        self._gene_dtype = np.dtype(info.statistics["gene_dtype"])
        self._info = info

    def __call__(self, table: pa.Table, first: int) -> tuple[pa.Table, RowFormat]:
        """The columns COLUMNS with the panel's labels, and what the rows are; `first` is the number of the first row.

        Raises:
            EvaeError: damaged rows, a label that the panel's dataset does not have.
        """
        for name in COLUMNS:
            if table[name].null_count:
                raise EvaeError(f"{NAME} has rows without {name}; filter them out.")
        labels = {name: self._ids(table[name].to_numpy(), name) for name in self._known}
        genes, counts = (len(flat_values(table[name], BYTE)[0]) for name in ("genes", "counts"))
        n = genes // self._gene_dtype.itemsize
        width = counts // n if n else 1
        if genes != n * self._gene_dtype.itemsize or counts != n * width or width not in (1, 2, 4):
            raise EvaeError(
                f"{NAME} has not one count for each gene; read and map the cells unformatted (with_format(None)), and "
                "mix datasets of other count widths by dataset=[a,b]."
            )
        count_dtype = np.dtype(f"<u{width}")
        row_format = replace(
            RowFormat.of(self._info), count_dtype=count_dtype, max_count=int(np.iinfo(count_dtype).max), remedy=REMEDY
        )
        rows = pa.table({"genes": table["genes"], "counts": table["counts"], **labels})
        row_format.check(rows, NAME, first)
        return rows, row_format

    def _ids(self, labels: np.ndarray, name: str) -> np.ndarray:
        """The panel's ids of class labels of the stream."""
        names = self._names[name]
        ids = np.full(len(names), -1)
        present = np.unique(labels)
        ids[present] = look_up([names[i] for i in present], self._known[name], name.replace("_", " "))
        return ids[labels]


def checksum(table: pa.Table) -> int:
    """A number that tells rows apart."""
    found = 0
    for name in COLUMNS:
        values = flat_values(table[name], BYTE)[0] if name in ("genes", "counts") else table[name].to_numpy()
        found = zlib.crc32(np.ascontiguousarray(values).data, found)
    return found


def check_stream(cells: Any) -> None:
    """Raise `EvaeError` unless `cells` is an `IterableDataset`."""
    from datasets import IterableDataset  # slow to import, and only needed for streams

    if not isinstance(cells, IterableDataset):
        raise EvaeError(
            f"the cells are a {type(cells).__name__}, not an IterableDataset; give load_dataset(..., "
            "split='train', streaming=True), or to_iterable_dataset()."
        )
