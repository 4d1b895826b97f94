"""What comes out of an `IterableDataset` of HF `datasets` as checked rows of cells, see `evae.data.rows`."""

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from evae.data.format import Dataset, panel_digest
from evae.data.rows import BYTE, COLUMNS, HIGH, PAIRS, RowFormat, cell_features, flat_values
from evae.models.contract_evae import EvaeError, look_up

if TYPE_CHECKING:
    from datasets import Features

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
        ids = {own["genes"].id: True, f"panel {panel_digest(info.genes)}": False}  # of formats 2 and 1
        steps = ids.get(getattr(features.get("genes"), "id", None), HIGH in features)
        self._columns = [*COLUMNS, HIGH] if steps else COLUMNS
        if missing := [name for name in self._columns if name not in features]:
            raise EvaeError(
                f"the cells have no column {' and no '.join(missing)}; stream a dataset of `evae prepare`, "
                "and rename or remove none of its columns."
            )
        for name in (name for name in self._columns if name not in self._known):
            if getattr(features[name], "dtype", None) != "binary":
                raise EvaeError(f"the column {name} of the cells must be binary; stream a dataset of `evae prepare`.")
        if features["genes"].id not in ids:
            raise EvaeError(
                f"the cells do not say that they count over the gene panel of {panel}; stream a dataset over the same "
                "panel, or prepare it anew where an older evae did."
            )
        self._names: dict[str, list[str]] = {}
        for name in self._known:
            if not getattr(features[name], "names", None):
                raise EvaeError(f"the column {name} of the cells must be a ClassLabel; see cast_column of datasets.")
            self._names[name] = features[name].names
        self._format = replace(RowFormat.of(info), steps=steps, remedy=REMEDY)

    def __call__(self, table: pa.Table, first: int) -> tuple[pa.Table, RowFormat]:
        """Rows with the panel's labels, and what they are; `first` is the number of the first row.

        Raises:
            EvaeError: damaged rows, a label that the panel's dataset does not have.
        """
        for name in self._columns:
            if table[name].null_count:
                raise EvaeError(f"{NAME} has rows without {name}; filter them out.")
        labels = {name: self._ids(table[name].to_numpy(), name) for name in self._known}
        count_dtype = self._count_dtype(table)
        row_format = replace(self._format, count_dtype=count_dtype, max_count=int(np.iinfo(count_dtype).max))
        rows = table.select([name for name in self._columns if name not in labels])
        for name, ids in labels.items():
            rows = rows.append_column(name, pa.array(ids))
        row_format.check(rows, NAME, first)
        return rows, row_format

    def _count_dtype(self, table: pa.Table) -> np.dtype:
        """Of what width the counts of these rows are; datasets of one panel differ in it."""
        genes, counts = (len(flat_values(table[name], BYTE)[0]) for name in ("genes", "counts"))
        if self._format.steps:
            high, ends = flat_values(table[HIGH], BYTE)
            width, whole = 4 if len(high) else 1, genes == counts and not (ends % (2 * PAIRS.itemsize)).any()
        else:
            n = genes // self._format.gene_dtype.itemsize
            width = counts // n if n else 1
            whole = genes == n * self._format.gene_dtype.itemsize and counts == n * width and width in (1, 2, 4)
        if not whole:
            raise EvaeError(
                f"{NAME} has not one count for each gene; read and map the cells unformatted (with_format(None)), and "
                "mix datasets of other count widths by dataset=[a,b]."
            )
        return np.dtype(f"<u{width}")

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
    for name in [name for name in (*COLUMNS, HIGH) if name in table.column_names]:
        labels = name in ("perturbation", "cell_type")
        values = table[name].to_numpy() if labels else flat_values(table[name], BYTE)[0]
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
