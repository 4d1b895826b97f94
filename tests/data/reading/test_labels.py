"""Labels are the same text whatever type their column has, at every entrance."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.labels import label_codes, label_texts
from evae.data.streaming.loader import DatasetInfo
from evae.evaluation.cells.inputs import open_source

LABELS = ["2", "1", "2", "10"]
COLUMNS = {
    "text": LABELS,
    "integers": [2, 1, 2, 10],
    "floats": [2.0, 1.0, 2.0, 10.0],
    "float32": np.array([2, 1, 2, 10], dtype=np.float32),
    "categories": pd.Categorical(LABELS, categories=["1", "2", "10", "unused"]),
    "categories of floats": pd.Categorical([2.0, 1.0, 2.0, 10.0]),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_the_same_labels_of_every_type(column, tmp_path):
    values = COLUMNS[column]
    assert label_texts(values).tolist() == LABELS
    cells = ad.AnnData(np.ones((4, 2), np.float32), obs=pd.DataFrame({"label": values}, index=list("abcd")))
    cells.var_names = ["A", "B"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for source in (AnnDataCounts(cells), FileCounts(tmp_path / "cells.h5ad")):
        codes, names = source.labels("label")
        assert [names[c] for c in codes] == LABELS
        assert codes.dtype == np.int32
    for data in (cells, tmp_path / "cells.h5ad"):
        assert open_source(data, "the cells", "label", None).perturbation.tolist() == LABELS


def test_other_labels_stay_as_they_are():
    assert label_codes(["a", None, 1, 1.0, 1.5])[1] == ["a", "1", "1.5"]
    assert label_texts([True, False]).tolist() == ["True", "False"]
    codes, names = label_codes([0.5, np.nan, 3.0])
    assert codes.tolist() == [0, -1, 1]
    assert names == ["0.5", "3"]
    assert label_texts([None, None]).tolist() == ["", ""]
    assert label_codes([])[0].tolist() == []


def test_two_files_of_other_types_and_their_controls(screen, pipe, tmp_path, monkeypatch):
    """A column of whole numbers, and the same where the writer made floats of them: one cell type each."""
    numbers = screen.obs["cell_type"].cat.codes.to_numpy() + 1
    files = []
    for name, kind in (("integers", np.int64), ("floats", np.float64)):
        cells = screen.copy()
        cells.obs["cell_type"] = numbers.astype(kind)
        cells.obs_names = [f"{name}-{i}" for i in range(cells.n_obs)]
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
        files.append(tmp_path / f"{name}.h5ad")
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    info = DatasetInfo.load(prepare_dataset(files, tmp_path / "out", **keys, progress=False))
    assert info.cell_types == ["1", "2"]
    monkeypatch.setattr(pipe.processor, "cell_types", info.cell_types)
    controls = cells[cells.obs["perturbation"] == "control"].copy()
    assert controls.obs["cell_type"].dtype == np.float64
    found = pipe.predict(controls, pipe.processor.perturbations[1], n_cells=2, progress=False)
    assert set(found.obs["cell_type"]) == {"1", "2"}
