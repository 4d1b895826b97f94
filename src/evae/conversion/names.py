"""Names that a run folder does not hold: genes, perturbations, cell types; and the library sizes of the cells.

They come from the h5ad file that the run was trained on, where vocabularies are the sorted labels; from JSON, a list of
genes or {"genes": [...], "perturbations": [...], "cell_types": [...]}; or from text, a gene a line. All are in the
run's order.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evae.common.messages import number_of
from evae.conversion.run_folder import Run, Settings
from evae.models.contract_evae import EvaeError, check_unique

N_QUANTILES = 101
EDGE = 0.001  # where the normal distribution is cut off
BLOCK = 4096


@dataclass(frozen=True)
class Names:
    """Names in the order of their ids.

    Attributes:
        genes: symbols, or ids where there is no symbol.
        ensembl_ids: of the genes, "" where unknown; None if no gene has one.
        perturbations: of the run.
        cell_types: of the run.
        library_sizes: quantiles over the panel, equally spaced from 0 to 1; None if unknown.
        median: median library size that counts are normalised to; None if unknown.
        told: what to tell the user of where the library sizes come from.
        features: vectors of perturbations by name, where the run has such.
    """

    genes: Sequence[str]
    ensembl_ids: Sequence[str] | None
    perturbations: Sequence[str]
    cell_types: Sequence[str]
    library_sizes: Sequence[float] | None
    median: float | None
    told: str
    features: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def units(self) -> list[str]:
        """Names of the prior's perturbation ids: those of the run, and the others that have a vector."""
        return list(dict.fromkeys([*self.perturbations, *self.features]))

    def features_of_units(self, width: int) -> Tensor:
        """Vectors (units, features); zeros where a perturbation has none, as in the run.

        Args:
            width: length of a vector in the run; 0 if unknown.

        Raises:
            EvaeError: no vectors were given, or they have another length.
        """
        if not self.features:
            raise EvaeError(
                "this prior knows perturbations by feature vectors; give the table that the run was trained with as "
                "--features (npz, csv, tsv or parquet)."
            )
        own = len(next(iter(self.features.values())))
        if width not in (0, own):
            raise EvaeError(
                f"the vectors of --features have {own} values, those of the run {width}; give its own table."
            )
        if not set(self.perturbations) & set(self.features):
            raise EvaeError(f"--features has no vector of any perturbation, such as '{self.perturbations[0]}'.")
        empty = np.zeros(own, dtype=np.float32)
        return torch.from_numpy(np.stack([self.features.get(name, empty) for name in self.units]))


def read_names(file: Path, run: Run, keys: tuple[str | None, str | None], needs_labels: bool) -> Names:
    """Names and library sizes from an h5ad, a JSON or a text file.

    Args:
        file: h5ad, json or txt.
        run: whose names these are.
        keys: obs columns of perturbation and cell type; None takes those of the run's settings.
        needs_labels: whether perturbations and cell types must be there.

    Raises:
        EvaeError: another file, or one that lacks something.
    """
    if not file.is_file():
        raise EvaeError(f"no such file: {file}")
    data = run.settings.part("dataset")
    if file.suffix == ".h5ad":
        if order := data.get("gene_order_path", ""):
            raise EvaeError(f"the run orders its genes by a list, {order}; give that list as --genes.")
        names = _from_h5ad(file, (keys[0] or data.get("pert_col", "gene"), keys[1] or "cell_type"), needs_labels)
    elif file.suffix in (".json", ".txt"):
        names = _from_list(file, run.statistics)
    else:
        raise EvaeError(f"{file} is no h5ad, json or txt file; give one of them as --genes.")
    for kind, there in (("perturbations", names.perturbations), ("cell_types", names.cell_types)):
        if needs_labels and not there:
            raise EvaeError(
                f"{file} lacks the names of {kind}, which a prior needs; give an h5ad file, or JSON with "
                '"perturbations" and "cell_types" beside "genes", in the order of their ids.'
            )
    median = data.get("target_sum", 0.0) or names.median
    return replace(names, genes=names.genes[: data.get("num_hvg", len(names.genes))], median=median)


def _from_h5ad(file: Path, keys: tuple[str, str], needs_labels: bool) -> Names:
    from evae.data.reading import FileCounts

    cells = FileCounts(file)
    try:
        columns = cells.gene_columns
        labels: list[list[str]] = []
        for key in keys:
            try:
                labels.append(sorted(cells.labels(key)[1]))
            except EvaeError:
                if needs_labels:
                    raise
                labels.append([])
        sizes = np.concatenate([np.asarray(block.sum(1)).ravel() for _, block in cells.blocks(BLOCK)])
    finally:
        cells.close()
    sizes = sizes[sizes > 0]
    if not len(sizes):
        raise EvaeError(f"all cells of {file} are empty; give the file that the run was trained on.")
    return Names(
        genes=columns.names,
        ensembl_ids=columns.ensembl_ids if any(columns.ensembl_ids) else None,
        perturbations=labels[0],
        cell_types=labels[1],
        library_sizes=np.quantile(sizes, np.linspace(0, 1, N_QUANTILES)).tolist(),
        median=float(np.median(sizes)),
        told=f"library sizes are those of the {number_of(len(sizes), 'cell')} of {file}, over its genes",
    )


def _from_list(file: Path, statistics: Settings) -> Names:
    try:
        text = file.read_text()
        content: Any = text.split() if file.suffix == ".txt" else json.loads(text)
    except ValueError as error:
        raise EvaeError(f"{file} cannot be read ({error}); give a JSON list of genes.") from None
    lists = content if isinstance(content, dict) else {"genes": content}
    found = {kind: lists.get(kind, []) for kind in ("genes", "perturbations", "cell_types")}
    for kind, names in found.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise EvaeError(f'"{kind}" of {file} must be a list of names; give a JSON list of genes.')
        check_unique(names, f"name among {kind} of {file}")
    if not found["genes"]:
        raise EvaeError(f"{file} names no genes; give a JSON list of genes, in the run's order.")
    mean, spread = statistics.get("log_lib_mean", 0.0), statistics.get("log_lib_std", 1.0)
    sizes, median, told = None, None, "library sizes are unknown; give control cells to predict"
    if "log_lib_mean" in statistics.values:
        levels = np.linspace(0, 1, N_QUANTILES).clip(EDGE, 1 - EDGE)
        sizes = [math.exp(mean + spread * NormalDist().inv_cdf(float(level))) for level in levels]
        median = statistics.get("median_library_size", math.exp(mean))
        told = "library sizes are the run's log-normal ones, which count all genes of its file, not the panel only"
    return Names(
        found["genes"], None, found["perturbations"], found["cell_types"], library_sizes=sizes, median=median, told=told
    )
