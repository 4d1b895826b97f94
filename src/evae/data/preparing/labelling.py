"""The labels of the cells of several files: which cells are wanted, and the codes of their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evae.common.messages import number_of
from evae.data.preparing.conventions import Named, find_names, find_perturbation
from evae.data.preparing.describe import CellLabels
from evae.data.preparing.treatments import NO_KEYS, TreatmentKeys, agent_of, distinct_rows, relabel
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.joined_frame import read_cell_table
from evae.models.contract_evae import EvaeError, look_up, near_matches, parts_of, split_names


def joined(sources: list[FileCounts], key: str, stored: bool = False) -> tuple[np.ndarray, list[str]]:
    """One obs column of all files: codes (cells,), -1 where it is missing, and the names; `stored`: as in the files."""
    found = [source.labels(key, gaps=True, stored=stored) for source in sources]
    names = sorted({name for _, own in found for name in own})
    place = {name: i for i, name in enumerate(names)}
    return np.concatenate([np.array([*(place[n] for n in own), -1])[codes] for codes, own in found]), names


def attach_labels(
    sources: list[FileCounts],
    table: str | Path | None,
    perturbation_key: str | None,
    cell_type_key: str | None,
    control: str | None,
    keys: TreatmentKeys = NO_KEYS,
) -> Named:
    """Give the files the columns of a table, if there is one; what labels their cells, by convention where not named.

    Args:
        sources: the files; where treatments are told apart, the labels of their perturbations are changed.
        table: as `read_cell_table` reads it.
        perturbation_key, cell_type_key, control: what the user named, None where not.
        keys: what tells treatments apart.
    """
    if table is not None:
        columns = read_cell_table(table)
        for source in sources:
            source.add_columns(columns, str(table))
    shared = [column for column in sources[0].obs if all(column in source.obs for source in sources)]
    if keys.parse_labels:
        perturbation_key = perturbation_key or find_perturbation(shared, lambda key: joined(sources, key))
        control = control if control is None else agent_of(control)

    def labels(key: str) -> tuple[np.ndarray, list[str]]:
        return _agents(*joined(sources, key)) if keys.parse_labels and key == perturbation_key else joined(sources, key)

    told_apart = [key for key in (keys.dose_key, keys.time_key, keys.kind_key, keys.parse_labels and "labels") if key]
    named = find_names(shared, labels, perturbation_key, cell_type_key, control, told_apart)
    if not keys.used:
        return named
    treatments, notes = relabel(sources, named.perturbation_key, named.control, keys)
    return replace(named, treatments=treatments, notes=[*named.notes, *notes])


def _agents(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """A column of combined labels as one of their agents."""
    agents = sorted({agent_of(name) for name in names})
    place = {agent: i for i, agent in enumerate(agents)}
    return np.array([*(place[agent_of(name)] for name in names), -1])[codes], agents


def join_columns(sources: list[FileCounts], key: str) -> None:
    """Make the column `donor,plate` of the columns donor and plate, where a key names several."""
    shared = [column for column in sources[0].obs if all(column in source.obs for source in sources)]
    columns = split_names(key, set(shared))
    if key in shared or len(columns) < 2:
        return
    for source in sources:
        code, rows = distinct_rows([source.labels(column, gaps=True) for column in columns])
        texts = [None if None in row else " / ".join(map(str, row)) for row in rows]
        names = sorted({text for text in texts if text is not None})
        place = {name: i for i, name in enumerate(names)}
        source.set_labels(key, np.array([-1 if x is None else place[x] for x in texts], dtype=np.int32)[code], names)


def chosen(sources: list[FileCounts], where: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which cells have one of the wanted values in every one of these obs columns, (cells,) bool."""
    kept = np.ones(sum(source.n_cells for source in sources), dtype=bool)
    for key, values in where.items():
        codes, names = joined(sources, key, stored=True)
        kept &= np.isin(codes, look_up(values, names, f"value of obs column '{key}'"))
    return kept


def with_values(sources: list[FileCounts], key: str, values: Sequence[str]) -> np.ndarray:
    """Which cells have one of these values in an obs column, (cells,) bool; every value must occur in some file."""
    found = [source.labels(key, stored=True) for source in sources]
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
        raise EvaeError(
            f"{number_of(len(cell_types), 'cell type')} for {number_of(len(sources), 'file')}; give one for each file."
        )
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
    codes, batches = columns[batch_key] if batch_key else (None, [])
    parts = [part for name in perturbation[1] for part in parts_of(name, set(named.treatments), control)]
    treatments = {part: named.treatments[part] for part in parts if part in named.treatments}
    return CellLabels(perturbation[0], cell_type[0], perturbation[1], cell_type[1], codes, batches, treatments)
