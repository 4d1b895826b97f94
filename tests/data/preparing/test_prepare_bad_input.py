"""Bad input to `evae prepare`: one line that says what to do, and nothing left behind."""

import numpy as np
import pytest
import scipy.sparse as sp

from evae.data.preparing.prepare import prepare_dataset
from evae.models.contract_evae import EvaeError


def _corrupt(key, value):
    def change(adata):
        adata.obs[key] = value(adata)

    return change


def _map_counts(function):
    def change(adata):
        adata.X = sp.csr_matrix(function(adata.X.toarray().astype(np.float32)))

    return change


BAD_INPUT = {
    "log": (_map_counts(np.log1p), {}, "log-normalised"),
    "negative": (_map_counts(lambda x: x - 1), {}, "negative"),
    "nan": (_map_counts(lambda x: np.where(x > 2, np.nan, x)), {}, "NaN"),
    "zeros": (_map_counts(np.zeros_like), {}, "single count over the gene panel"),
    "label": (
        _corrupt("perturbation", lambda a: [None, *a.obs["perturbation"][1:]]),
        {},
        "missing (NaN) in 1 cell;",
    ),
    "control": (None, {"control": "contrl"}, "Did you mean 'control'"),
    "column": (None, {"cell_type_key": "celltype"}, "no obs column 'celltype'. Did you mean 'cell_type'"),
    "layer": (None, {"layer": "counts"}, "has no layer 'counts'"),
    "type": (None, {"split": {"cell_type": ["type_D"], "pert": ["control"]}}, "unknown cell type 'type_D'"),
    "share": (None, {"split": "random:0.999"}, "leaves 0 of 150 cells, too few to train on"),
    "hvg": (None, {"genes": "hvg:71"}, "more genes than the 70"),
    "never": ("never", {}, "holds out no cell"),
    "everything": ("everything", {}, "leaves 1 of 150 cells, too few to train on"),
    "coverage": ("coverage", {}, "measures only 50% of the panel"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_raises_one_line_and_leaves_nothing(simulated, tmp_path, keys, case):
    change, options, message = BAD_INPUT[case]
    adata = simulated[:150].copy()
    options = dict(options)
    names = list(adata.obs["perturbation"].cat.categories)
    if change == "never":
        adata = adata[(adata.obs["cell_type"] != "type_A") | (adata.obs["perturbation"] != names[1])].copy()
        options["split"] = {"cell_type": ["type_A"], "pert": [names[1]]}
    elif change == "everything":
        adata.obs["perturbation"] = ["control"] + ["a"] * 149
        options["split"] = {"cell_type": ["type_A", "type_B", "type_C"], "pert": ["a"]}
    elif change == "coverage":
        (tmp_path / "panel.txt").write_text("GENE0001\nSTAT1\n")
        options["genes"] = tmp_path / "panel.txt"
    elif change is not None:
        change(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = set(tmp_path.iterdir())
    with pytest.raises(EvaeError) as caught:
        prepare_dataset(tmp_path / "a.h5ad", tmp_path / "out", **(keys | options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before
