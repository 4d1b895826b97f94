"""Reading cells for evaluation: any AnnData, h5ad file or dataset split, a block of rows at a time.

The scale of the input is recognised or stated: counts are scaled to 10,000 a cell over the panel and
log1p'd; log1p values are first taken back by expm1, so that everything is compared in one space, whoever
predicted it. Cells that come from a file are kept in a temporary file, so that memory does not grow with it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.messages import number_of
from evae.common.threads import in_threads
from evae.data.reading.anndata_file import as_anndata
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.labels import label_texts
from evae.data.streaming.split_anndata import DatasetSplit
from evae.evaluation.cells.normalised import Cells, Rows, StoredRows, log1p_and_totals
from evae.evaluation.cells.scale import RAW, Scale, recognise_scale, totals_after_expm1
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import GeneColumns, case_hint, gene_columns, match_genes

if TYPE_CHECKING:
    import anndata as ad  # 26 MB, which files do without

Data: TypeAlias = Union["ad.AnnData", DatasetSplit, str, Path]
Progress: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]
BLOCK_ROWS = 4_096
_FIRST_ROWS = 64  # at a time, where the first cell that is not empty tells the scale
BLOCK_VALUES = 1 << 21  # rows x genes of a block at most: 16 MiB where a file is dense


def silent(work: Iterable[Any], description: str) -> Iterable[Any]:
    """No progress bar."""
    return work


def _nothing() -> None:
    """Closes what is not open."""


@dataclass(frozen=True)
class Source:
    """Cells somewhere, with their labels read and their scale recognised.

    Attributes:
        name: what to call it in messages.
        perturbation, cell_type: labels, (cells,).
        read_names: (start, stop) -> the names of these cells.
        origins: of predicted cells the names of the control cells that they started from, (cells,); None without.
        genes: those of the source.
        scale: the scale that the values are taken for, and why.
        read: (start, stop) -> the values of these rows, dense or sparse.
        in_memory: whether the values lie in memory already.
        close: lets go of the file.
        opened_with: what `open_source` was given for a file; None where the cells are elsewhere.
        totals: of an open scale, those after expm1 of the cells that were read, in parts, (cells,) each.
    """

    name: str
    perturbation: np.ndarray
    cell_type: np.ndarray
    read_names: Callable[[int, int], Any]
    genes: GeneColumns
    scale: Scale
    read: Callable[[int, int], Any]
    in_memory: bool
    close: Callable[[], None] = _nothing
    origins: np.ndarray | None = None
    totals: list[np.ndarray] = field(default_factory=list)
    opened_with: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.perturbation)

    @cached_property
    def cell_names(self) -> pd.Index:
        """Names of the cells, (cells,); read when first asked for."""
        return pd.Index(self.read_names(0, len(self)))

    def blocks(
        self, rows: np.ndarray, genes: GeneColumns, progress: Progress = silent
    ) -> Iterator[tuple[np.ndarray, sp.csr_matrix, np.ndarray]]:
        """Yield (row indices, log1p CP10K over `genes`, totals) of the sorted `rows`, block by block of the source."""
        columns = self.columns(genes)
        size = _block_rows(len(self.genes))

        def stored() -> Iterator[tuple[np.ndarray, int, Any]]:
            for first in progress(np.unique(rows // size) * size, f"reading {self.name}"):
                low, high = np.searchsorted(rows, [first, first + size])
                yield rows[low:high], int(first), self.read(int(first), min(int(first) + size, len(self)))

        def normalised(block: tuple[np.ndarray, int, Any]) -> tuple[np.ndarray, sp.csr_matrix, np.ndarray]:
            part, first, values = block
            if len(part) < values.shape[0]:
                values = values[part - first]
            self.scale.check(values, self.name)
            matrix, totals = log1p_and_totals(values, self.scale.name, columns)
            if self.scale.open:  # a list may be added to by several threads
                self.totals.append(totals if columns is None else totals_after_expm1(sp.csr_matrix(values)))
            return part, matrix, totals

        yield from in_threads(normalised, stored())

    def settled(self) -> "Source":
        """The source with its scale judged by all cells that were read.

        Raises:
            EvaeError: no scale explains the values.
        """
        return replace(self, scale=self.scale.settled(self.totals, self.name))

    def columns(self, genes: GeneColumns) -> np.ndarray | None:
        """Where the panel's genes stand in this source; None when it is the panel already."""
        if genes == self.genes:
            return None
        position = match_genes(genes, self.genes, self.name)
        if len(self.genes) == len(genes) and (position == np.arange(len(genes))).all():
            return None
        missing = [genes.names[g] for g in np.flatnonzero(position < 0).tolist()]
        if len(missing) == len(genes):
            raise EvaeError(
                f"{self.name} have no gene of the real cells (theirs: {', '.join(self.genes.names[:2])}; the real "
                f"ones': {', '.join(genes.names[:2])}); give both the same kind of gene names, or symbols and Ensembl "
                f"ids in var.{case_hint(missing, self.genes)}"
            )
        if missing:
            raise EvaeError(
                f"{self.name} lack {len(missing)} of the {number_of(len(genes), 'gene')} of the real cells (first: "
                f"{', '.join(missing[:3])}); subset the real cells to the genes of both before "
                f"evaluating.{case_hint(missing, self.genes)}"
            )
        return position

    def cells(self, genes: GeneColumns, rows: np.ndarray | None = None, progress: Progress = silent) -> Cells:
        """Read `rows` (all by default) over the panel `genes`."""
        rows = np.arange(len(self)) if rows is None else rows
        stored, parts, empty = StoredRows(len(genes)), [sp.csr_matrix((0, len(genes)), dtype=np.float32)], 0
        sums = [np.empty(0)]
        for _, block, totals in self.blocks(rows, genes, progress):
            empty += int((np.diff(block.indptr) == 0).sum())
            parts.append(block) if self.in_memory else stored.append(block)
            sums.append(totals)
        matrix: Rows = sp.vstack(parts, format="csr") if self.in_memory else stored
        counted = np.concatenate(sums) if self.scale.name == RAW else None
        names = np.asarray(genes.names, dtype=object)
        return Cells(matrix, self.perturbation[rows], self.cell_type[rows], names, empty, counted)


def open_source(
    data: Data,
    name: str,
    perturbation_key: str,
    cell_type_key: str | None,
    scale: str = "auto",
    scale_option: str = "",
    side: str = "",
    as_read: bool = False,
) -> Source:
    """Open an AnnData, an h5ad file or a dataset split and check it.

    Args:
        data: an AnnData (never changed), the path of an h5ad file, or a split of a dataset folder.
        name: what to call it in messages ("the predicted cells").
        perturbation_key: obs column of the perturbation; a dataset split knows its own.
        cell_type_key: obs column of the cell type; None treats all cells as one type.
        scale: "auto" (recognised), "counts" (fractions are expected counts) or "log1p".
        scale_option: the argument that states it, for messages.
        side: what the arguments of the two keys begin with, for messages: "predicted_" or nothing.
        as_read: judge the scale of fractions while the cells are read once; call `Source.settled` after that.

    Raises:
        EvaeError: a file, column or matrix is missing, a label is missing, genes have no names or stand twice, or the
            values are of no scale, or not of the stated one.
    """
    if isinstance(data, DatasetSplit):
        if scale == "log1p":
            raise EvaeError(f"{name}: a split of a dataset holds raw counts; leave {scale_option or 'scale'} out.")
        return _open_split(data, name, cell_type_key)
    opened_with = None
    if isinstance(data, (str, Path)):
        if Path(data).is_file():
            opened_with = data, name, perturbation_key, cell_type_key, scale, scale_option, side, as_read
        name = f"{name} ({data})"
        file = FileCounts(data)
        obs, n_cells, genes = file.obs, file.n_cells, file.gene_columns
        read_names = file.cell_ids
        read, close, in_memory = file.values, file.close, False
    else:
        cells = as_anndata(data, name, needed=(perturbation_key, cell_type_key))
        if cells.X is None or cells.n_obs == 0:
            raise EvaeError(f"{name}: no cells in X; put raw counts or log1p values there.")
        obs, n_cells = cells.obs, cells.n_obs
        read_names = partial(_names, cells.obs_names)
        genes = gene_columns(cells.var_names, cells.var, name)
        read, close, in_memory = partial(_rows, cells), _nothing, True  # a file that the caller opened stays open
    perturbation = _labels(obs, perturbation_key, name, f"{side}perturbation_key")
    if cell_type_key is None:
        cell_type = np.full(n_cells, "all", dtype=object)
    else:
        cell_type = _labels(obs, cell_type_key, name, f"{side}cell_type_key")
    size = _FIRST_ROWS if as_read else _block_rows(len(genes))
    blocks = (read(start, min(start + size, n_cells)) for start in range(0, n_cells, size))
    recognised = recognise_scale(blocks, name, scale, scale_option, as_read)
    origins = label_texts(pd.Series(obs["source"])) if "source" in obs else None
    return Source(
        name, perturbation, cell_type, read_names, genes, recognised, read, in_memory, close, origins,
        opened_with=opened_with,
    )  # fmt: skip


def predicted_keys(
    data: Data, keys: tuple[str, str | None], perturbation_key: str | None, cell_type_key: str | None
) -> tuple[str, str | None]:
    """The obs columns of predicted cells: those named, else the real cells' where they have them, else `predict`'s.

    Args:
        data: the predicted cells.
        keys: the real cells' columns of the perturbation and the cell type; None treats all cells as one type.
        perturbation_key, cell_type_key: those of the predicted cells, None where they were not named.
    """
    known: set[str] = set()
    if isinstance(data, (str, Path)):
        with closing(FileCounts(data)) as file:
            known = set(file.obs)
    elif not isinstance(data, DatasetSplit):
        known = set(as_anndata(data, "the predicted cells").obs.columns)

    def choose(named: str | None, key: str, written: str) -> str:
        return named or (written if key not in known and written in known else key)

    perturbation = choose(perturbation_key, keys[0], "perturbation")
    if keys[1] is None:
        return perturbation, cell_type_key
    return perturbation, choose(cell_type_key, keys[1], "cell_type")


def _open_split(data: DatasetSplit, name: str, cell_type_key: str | None) -> Source:
    labels = data.labels()
    perturbation, cell_type = label_texts(labels["perturbation"]), label_texts(labels["cell_type"])
    if cell_type_key is None:
        cell_type = np.full(len(labels), "all", dtype=object)
    name = f"{name} (split {data.split} of the dataset)"
    genes, scale = GeneColumns.of_panel(data.info.genes, data.info.ensembl_ids), Scale(RAW, "a dataset holds counts")
    return Source(
        name, perturbation, cell_type, partial(_names, labels.index), genes, scale, data.counts, in_memory=False
    )


def _labels(obs: Mapping[str, Any] | pd.DataFrame, key: str, name: str, argument: str) -> np.ndarray:
    if key not in obs:
        raise EvaeError(f"{name}: no column '{key}' in obs; name it with {argument}. {near_matches(key, list(obs))}")
    column = pd.Series(obs[key])
    if column.isna().any():
        raise EvaeError(
            f"{name}: {number_of(int(column.isna().sum()), 'cell has', 'cells have')} no '{key}'; drop "
            "them or fill the label in."
        )
    return label_texts(column)


def _block_rows(n_genes: int) -> int:
    return max(1, min(BLOCK_ROWS, BLOCK_VALUES // max(n_genes, 1)))


def _names(names: pd.Index, start: int, stop: int) -> pd.Index:
    return names[start:stop]


def _rows(data: "ad.AnnData", start: int, stop: int) -> Any:
    """A run of rows of X, in memory. An entry that a sparse row holds twice is valid and means the sum."""
    # X of a view or of a backed file is materialised anew at each access, so those are sliced first
    part: Any = data[start:stop].X if data.is_view or data.isbacked else data.X[start:stop]
    if not sp.issparse(part):
        return np.asarray(part)
    if not part.has_canonical_format:
        part = part.copy()  # it may be the caller's own
        part.sum_duplicates()
    return part
