"""Control cells out of a file whose labels may have any of the names that are usual in the field."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from evae.data.preparing.conventions import find_names
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.labels import label_texts
from evae.inference.control_files import read_controls
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import gene_columns


@dataclass(frozen=True)
class LabelColumns:
    """How the cells of a file are labelled, as far as the user says; None is found by usual names.

    Attributes:
        perturbation_key, cell_type_key: obs columns.
        control: label of control cells.
        usual: that label where the file has it and the user names none: the model's.
    """

    perturbation_key: str | None = None
    cell_type_key: str | None = None
    control: str | None = None
    usual: str | None = None


def controls_of(path: Path, columns: LabelColumns, most: int) -> tuple[ad.AnnData, list[str]]:
    """The control cells of a file, with nothing but what a prediction reads.

    Args:
        path: a file of raw counts, in X, `raw` or a layer; all of its cells are taken where none is perturbed.
        columns: how its cells are labelled.
        most: cells to take; of more, so many are drawn at random.

    Returns:
        AnnData (CSR raw counts; obs `cell_type` where the file has such a column; var names and `ensembl_id`), and
        notes on what was chosen.

    Raises:
        EvaeError: not a file of raw counts, no control cell, or columns that cannot be told.
    """
    with closing(FileCounts(path, "auto")) as source:
        known = list(source.obs)
        for key in (columns.perturbation_key, columns.cell_type_key):
            if key is not None and key not in known:
                raise EvaeError(f"{path} has no obs column '{key}'. {near_matches(key, known)}")

        def labels(key: str) -> tuple[np.ndarray, list[str]]:
            return source.labels(key, gaps=True)

        asked = (columns.perturbation_key, columns.cell_type_key)
        named = find_names(known, labels, *asked, control=columns.control or columns.usual or "control")
        key, control = named.perturbation_key, columns.control
        if control is None and key in known:
            usual = columns.usual in labels(key)[1]
            control = columns.usual if usual else find_names(known, labels, key, named.cell_type_key).control
    keys = (key, named.cell_type_key)
    cells, notes = read_controls(path, keys, control or "", named=columns.control is not None, layer="auto", most=most)
    obs = pd.DataFrame(index=[str(i) for i in range(cells.n_obs)])
    if keys[1] in cells.obs:
        obs["cell_type"] = [text or None for text in label_texts(cells.obs[keys[1]])]
    genes = gene_columns([str(g) for g in cells.var_names], cells.var, str(path))
    var = pd.DataFrame({"ensembl_id": genes.ensembl_ids}, index=genes.names)
    return ad.AnnData(cells.X, obs=obs, var=var), notes
