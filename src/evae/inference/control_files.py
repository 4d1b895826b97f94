"""The control cells of a file, which a prediction starts from."""

from contextlib import closing
from pathlib import Path

import anndata as ad
import numpy as np

from evae.common.messages import number_of
from evae.data.reading.anndata_file import read_chosen
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.labels import label_texts
from evae.inference.request import control_rows, left_out
from evae.models.contract_evae import EvaeError, near_matches


def read_controls(
    path: Path,
    keys: tuple[str, str],
    label: str,
    *,
    named: bool = False,
    layer: str | None = None,
    most: int | None = None,
) -> tuple[ad.AnnData, list[str]]:
    """The control cells of a file; all of its cells where it has no column of perturbations.

    Args:
        path: the file.
        keys: the obs columns of the perturbation and the cell type.
        label: the label of control cells.
        named: whether the user named this label, so that there must be a column that holds it.
        layer: the layer of raw counts, "raw" or "auto"; X if None.
        most: control cells to take; of more, so many are drawn at random. All if None.

    Returns:
        the cells in memory, and what the user should know of how they were read.

    Raises:
        EvaeError: not a file of raw counts, no cell with the label, or a label without a column.
    """
    with closing(FileCounts(path, layer)) as source:
        obs, rows, notes = source.obs, np.arange(source.n_cells), list(source.notes)
        if keys[0] in obs:
            rows = control_rows(label_texts(obs[keys[0]]), label, keys[0], str(path))
            if len(rows) < source.n_cells:
                notes.append(left_out(len(rows), source.n_cells, label, keys[0]))
        elif named:
            raise EvaeError(f"{path} has no obs column '{keys[0]}'. {near_matches(keys[0], list(obs))}")
        if most is not None and len(rows) > most:
            notes.append(f"{most:,} of the {number_of(len(rows), 'control cell')} were drawn at random")
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
        return read_chosen(source, rows, keys), notes
