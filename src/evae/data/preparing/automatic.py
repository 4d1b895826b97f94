"""What to hold out, and how many genes to take, where the user leaves it to us (`evae prepare --split auto`).

What is held out is a cross product of one cell type with some perturbations: training sees each of these
perturbations elsewhere, and the controls of this cell type.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evae.data.preparing.conventions import Named
from evae.data.preparing.labelling import attach_labels, joined
from evae.data.preparing.treatments import NO_KEYS, TreatmentKeys
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError, look_up

MIN_CELLS = 20  # of a perturbation in the held-out cell type and elsewhere, to be held out by default
MAX_GENES = 1_000  # what trains in minutes on a CPU


def read_labels(files: Sequence[Path], key: str, layer: str | None = None) -> pd.Series:
    """One obs column of all cells of some h5ad files, str (cells,).

    Raises:
        EvaeError: an unreadable file, or one without such a column.
    """
    columns = []
    for path in files:
        with closing(FileCounts(path, layer)) as file:
            codes, names = file.labels(key)
        columns.append(pd.Series(np.asarray(names, dtype=object)[codes]))
    return pd.concat(columns, ignore_index=True)


def read_named_labels(
    files: Sequence[Path],
    layer: str | None = None,
    perturbation_key: str | None = None,
    cell_type_key: str | None = None,
    control: str | None = None,
    obs: Path | None = None,
    keys: TreatmentKeys = NO_KEYS,
) -> tuple[Named, pd.Series, pd.Series]:
    """What labels the cells of some files, their cell types and their perturbations, str (labelled cells,) each.

    Raises:
        EvaeError: an unreadable file, or one without such columns.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(FileCounts(path, layer))) for path in files]
        named = attach_labels(sources, obs, perturbation_key, cell_type_key, control, keys)
        columns = [joined(sources, key) for key in (named.cell_type_key, named.perturbation_key)]
    whole = np.all([codes >= 0 for codes, _ in columns], axis=0)
    kinds, names = (pd.Series(np.asarray(own, dtype=object)[codes[whole]]) for codes, own in columns)
    return named, kinds, names


def choose_genes(files: Sequence[Path], layer: str | None = None) -> tuple[str, str]:
    """All genes, or of many the `MAX_GENES` most variable.

    Returns:
        The genes as `prepare_dataset` takes them, and the choice in words.
    """
    genes = []
    for path in files:
        with closing(FileCounts(path, layer)) as file:
            genes.append(set(file.genes))
    n_genes = len(set.intersection(*genes))
    if n_genes <= MAX_GENES:
        return "all", f"all {n_genes:,}"
    return f"hvg:{MAX_GENES}", f"the {MAX_GENES:,} most variable of {n_genes:,}"


def choose_split(
    cell_type: pd.Series,
    perturbation: pd.Series,
    control: str,
    *,
    hold_out_cell_type: str | None = None,
    hold_out_perturbations: Sequence[str] = (),
    stored: Sequence[Path] = (),
) -> tuple[dict[str, Any] | str, str]:
    """What to hold out of a data set.

    What the user names is held out. Where nothing is named, a stored split whose names all occur in the data
    is taken. Else the cell type with the most perturbed cells is held out with every third of its
    perturbations, counted by falling number of cells, among those with at least `MIN_CELLS` cells both in it
    and elsewhere. With a single cell type, a random tenth of the cells.

    Args:
        cell_type, perturbation: labels of all cells, str (cells,).
        control: the control's label.
        hold_out_cell_type, hold_out_perturbations: what the user named, if anything.
        stored: split files to recognise.

    Returns:
        The split as `prepare_dataset` takes it, and one sentence that says where it comes from.

    Raises:
        EvaeError: a name that does not occur, or nothing that can be held out.
    """
    table = pd.crosstab(cell_type, perturbation).drop(columns=control, errors="ignore")
    if hold_out_cell_type is not None:
        look_up([hold_out_cell_type], [str(c) for c in table.index], "cell type")
    look_up(hold_out_perturbations, [str(p) for p in table.columns], "perturbation")
    if hold_out_cell_type is None and not hold_out_perturbations:
        for path in stored:
            split = json.loads(path.read_text())
            if set(split["cell_type"]) <= set(table.index) and set(split["pert"]) <= set(table.columns):
                return split, f"the stored split '{path.stem}', whose names occur in this file"
        if len(table.index) < 2:
            return "random:0.1", "a random tenth of the cells, as there is a single cell type"
    among = table[list(hold_out_perturbations)] if hold_out_perturbations else table
    kind = hold_out_cell_type or str(among.sum(axis=1).idxmax())
    if hold_out_perturbations:
        return {"cell_type": [kind], "pert": list(hold_out_perturbations)}, "as asked for"
    inside = table.to_numpy()[list(table.index).index(kind)]  # (perturbations,)
    elsewhere = table.to_numpy().sum(axis=0) - inside
    eligible = np.flatnonzero(np.minimum(inside, elsewhere) >= MIN_CELLS)
    if not len(eligible):
        raise EvaeError(
            f"no perturbation has {MIN_CELLS} cells both in '{kind}' and elsewhere; name the held-out "
            "perturbations yourself."
        )
    chosen = table.columns[eligible[np.argsort(-inside[eligible], kind="stable")][::3]]
    reason = f"a third of the perturbations in '{kind}', " + (
        "as asked for" if hold_out_cell_type else "the cell type with the most perturbed cells"
    )
    return {"cell_type": [kind], "pert": sorted(str(p) for p in chosen)}, reason
