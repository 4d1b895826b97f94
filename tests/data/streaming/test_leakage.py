"""Cells and targets that stand on both sides of a split are named."""

import anndata as ad
import pandas as pd
import pytest

from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.leakage import LEAST_EXPRESSED, leakage


@pytest.fixture
def found(tmp_path):
    """What is said of cells under a split."""

    def check(cells, split):
        cells.write_h5ad(tmp_path / "cells.h5ad")
        keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
        return leakage(prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "data", split=split, progress=False, **keys))

    return check


def test_a_clean_split_has_nothing_to_say(screen_dataset):
    assert leakage(screen_dataset) == []


def test_cells_on_both_sides_are_named(screen, screen_split, found):
    held_out = screen.obs["cell_type"].isin(screen_split["cell_type"]) & screen.obs["perturbation"].isin(
        screen_split["pert"]
    )
    tested, others = screen[held_out], screen[~held_out]
    deep = tested[tested.X.getnnz(axis=1) >= LEAST_EXPRESSED]
    copies = deep[:2].copy()
    copies.obs["cell_type"] = "type_A"  # copied under another label
    copies.obs_names = ["copy0", "copy1"]
    cells = ad.concat([screen, copies])
    cells.obs = cells.obs.astype("category")
    names = list(cells.obs_names)
    names[names.index(others.obs_names[0])] = tested.obs_names[5]  # the barcode of a held-out cell
    cells.obs_names = names
    counts, barcodes = found(cells, screen_split)
    assert f"copy0 and {deep.obs_names[0]}" in counts
    assert counts.startswith("2 cells (")
    assert barcodes == f"1 cell ({tested.obs_names[5]}) of training have the name (barcode) of a held-out cell"


def test_targets_known_by_another_name_are_named(screen, found):
    cells = screen.copy()
    names = [p for p in cells.obs["perturbation"].cat.categories if p != "control"]
    renamed = dict(zip(names, ["STAT1_g1", "stat1-sg2", "JAK2", "IRF1"], strict=True))
    cells.obs["perturbation"] = pd.Categorical(cells.obs["perturbation"].astype(str).replace(renamed))
    assert found(cells, "unseen-perturbation:STAT1_g1") == [
        "1 held-out target (STAT1_g1 by stat1-sg2) known in training"
    ]
