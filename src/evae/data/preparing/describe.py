"""What dataset.json says: sizes, widths, statistics of the training cells, where the cells came from."""

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from evae.common.digests import content_digest
from evae.data.format import FORMAT_VERSION, SPLITS
from evae.data.preparing.genes import Panel
from evae.data.preparing.shards import RowPlan, row_group_rows
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError
from evae.models.treatments_evae import Treatment


@dataclass
class CellLabels:
    """The labels of all cells of all files, in order: codes into the vocabularies."""

    perturbation: np.ndarray  # (cells,) int32
    cell_type: np.ndarray  # (cells,) int32
    perturbations: list[str]  # the control first, the others sorted
    cell_types: list[str]
    batch: np.ndarray | None = None  # (cells,) int32
    batches: list[str] = field(default_factory=list)
    treatments: dict[str, Treatment] = field(default_factory=dict)  # of the perturbations and parts that have one

    def table(self, kept: np.ndarray) -> np.ndarray:
        """Number of the kept cells of every pair, (cell types, perturbations); `kept` is a mask (cells,)."""
        shape = (len(self.cell_types), len(self.perturbations))
        pairs = np.ravel_multi_index((self.cell_type[kept], self.perturbation[kept]), shape)
        return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


@dataclass
class Totals:
    """What the first reading found: totals over the panel and over all genes, numbers of expressed genes, and hashes of
    the names of the cells."""

    panel: np.ndarray  # (cells,) int64
    full: np.ndarray  # (cells,) int64
    expressed: np.ndarray  # (cells,) int32
    name: np.ndarray  # (cells,) uint64
    max_count: int

    @classmethod
    def empty(cls, n: int) -> "Totals":
        kinds = (np.int64, np.int64, np.int32, np.uint64)
        panel, full, expressed, name = (np.zeros(n, kind) for kind in kinds)
        return cls(panel, full, expressed, name, 0)


def describe(labels: CellLabels, panel: Panel, totals: Totals, plan: RowPlan, control: str) -> dict[str, Any]:
    """The content of dataset.json, but for the sources."""
    train = plan.split == SPLITS.index("train")
    library = totals.panel[train]
    width = next((w for w in (1, 2, 4) if totals.max_count < 1 << (8 * w)), None)
    if width is None:
        raise EvaeError(f"the largest count, {totals.max_count:,}, is no count of molecules; check the layer.")
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for s, name in enumerate(SPLITS):
        table = labels.table(plan.split == s)
        counts[name] = {
            kind: {p: int(n) for p, n in zip(labels.perturbations, row, strict=True) if n}
            for kind, row in zip(labels.cell_types, table, strict=True)
            if row.any()
        }
    return {
        "format_version": FORMAT_VERSION,
        "evae_version": version("evae"),
        "n_cells": {name: int((plan.split == s).sum()) for s, name in enumerate(SPLITS)},
        "n_genes": len(panel.genes),
        "control": control,
        "dropped_cells": int((plan.split < 0).sum()),
        "gene_dtype": "<u2" if len(panel.genes) <= 1 << 16 else "<u4",
        "count_dtype": f"<u{width}" if width > 1 else "|u1",
        "row_group_rows": row_group_rows(len(panel.genes)),
        "median_library_size": float(np.median(library)),
        "library_size_quantiles": np.quantile(library, np.linspace(0, 1, 101)).tolist(),
        "max_count": totals.max_count,
        "nonzero_fraction": float(totals.expressed[train].mean() / len(panel.genes)),
        "cell_counts": counts,
        **({"batches": labels.batches} if labels.batches else {}),
    }


def describe_source(source: FileCounts, panel: Panel, index: int) -> dict[str, Any]:
    return {
        "file": source.title if source.kind == "stream" else source.path.name,
        "sha256": content_digest(source.path),
        "n_cells": source.n_cells,
        "n_genes": source.n_genes,
        "panel_coverage": panel.coverage(index),
        "genes_found": panel.matches[index],
    }
