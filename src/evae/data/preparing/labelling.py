"""The labels of the cells of several files: which cells are wanted, and the codes of their labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evae.data.preparing.conventions import Named, find_names
from evae.data.preparing.describe import CellLabels
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.joined_frame import read_cell_table
from evae.models.contract_evae import EvaeError, look_up, near_matches


def joined(sources: list[FileCounts], key: str) -> tuple[np.ndarray, list[str]]:
    """One obs column of all files: codes (cells,), -1 where it is missing, and the names."""
    found = [source.labels(key, gaps=True) for source in sources]
    names = sorted({name for _, own in found for name in own})
    place = {name: i for i, name in enumerate(names)}
    return np.concatenate([np.array([*(place[n] for n in own), -1])[codes] for codes, own in found]), names


def attach_labels(
    sources: list[FileCounts],
    table: str | Path | None,
    perturbation_key: str | None,
    cell_type_key: str | None,
    control: str | None,
) -> Named:
    """Give the files the columns of a table, if there is one; what labels their cells, by convention where not named.

    Args:
        sources: the files.
        table: as `read_cell_table` reads it.
        perturbation_key, cell_type_key, control: what the user named, None where not.
    """
    if table is not None:
        columns = read_cell_table(table)
        for source in sources:
            source.add_columns(columns, str(table))
    shared = [column for column in sources[0].obs if all(column in source.obs for source in sources)]
    return find_names(shared, lambda key: joined(sources, key), perturbation_key, cell_type_key, control)


def chosen(sources: list[FileCounts], where: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which cells have one of the wanted values in every one of these obs columns, (cells,) bool."""
    kept = np.ones(sum(source.n_cells for source in sources), dtype=bool)
    for key, values in where.items():
        codes, names = joined(sources, key)
        kept &= np.isin(codes, look_up(values, names, f"value of obs column '{key}'"))
    return kept


def with_values(sources: list[FileCounts], key: str, values: Sequence[str]) -> np.ndarray:
    """Which cells have one of these values in an obs column, (cells,) bool; every value must occur in some file."""
    found = [source.labels(key) for source in sources]
    look_up(values, sorted({name for _, names in found for name in names}), f"value of obs column '{key}'")
    return np.concatenate([np.isin(np.asarray(names, dtype=object), values)[codes] for codes, names in found])


def read_labels(
    sources: list[FileCounts],
    named: Named,
    cell_types: Sequence[str] | None,
    kept: np.ndarray,
    batch_key: str | None = None,
) -> CellLabels:
    """The labels of all cells; the vocabularies are those of the kept ones."""
    if cell_types is not None and len(cell_types) != len(sources):
        raise EvaeError(f"{len(cell_types)} cell types for {len(sources)} files; give one for each file.")
    perturbation_key, cell_type_key, control = named.perturbation_key, named.cell_type_key, named.control
    columns = {}
    for key in (perturbation_key, cell_type_key, *([batch_key] if batch_key else [])):
        if key == cell_type_key and cell_types is not None:
            per_file = [(np.zeros(s.n_cells, np.int32), [kind]) for s, kind in zip(sources, cell_types, strict=True)]
        else:
            per_file = [s.labels(key, gaps=True) for s in sources]
        ends = np.cumsum([0, *(s.n_cells for s in sources)])
        used = [np.unique(codes[kept[a:b]]) for (codes, _), a, b in zip(per_file, ends, ends[1:], strict=False)]
        names = sorted({own[c] for (_, own), codes in zip(per_file, used, strict=True) for c in codes if c >= 0})
        if key == perturbation_key:
            if control not in names:
                raise EvaeError(
                    f"no cell has the control label '{control}' in obs column '{key}'. {near_matches(control, names)}"
                )
            names = [control, *(n for n in names if n != control)]
        index = {n: i for i, n in enumerate(names)}  # labels of left-out cells alone become 0
        recoded = [np.array([*(index.get(n, 0) for n in own), 0], dtype=np.int32)[codes] for codes, own in per_file]
        columns[key] = np.concatenate(recoded), names
    perturbation, cell_type = columns[perturbation_key], columns[cell_type_key]
    batch = columns[batch_key] if batch_key else (None, [])
    return CellLabels(perturbation[0], cell_type[0], perturbation[1], cell_type[1], *batch)
