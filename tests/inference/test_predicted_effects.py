"""Effects of predicted cells: as scanpy computes and reads them, with shares of cells and a spread over predictions."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae.inference.predicted_effects import as_rank_genes_groups
from evae.models.contract_evae import EvaeError

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def predicted(pipe, screen, screen_split):
    controls = screen[screen.obs["perturbation"] == "control"]
    return pipe.predict(controls, screen_split["pert"], "type_B", n_cells=60, seed=4, **QUIET)


def test_scanpy_reads_and_computes_the_same(pipe, predicted, controls):
    sc = pytest.importorskip("scanpy", reason="the layout is scanpy's")
    table = pipe.effects(predicted, controls, redraws=0)
    both = ad.concat([predicted, controls[controls.obs["cell_type"] == "type_B"]], join="inner")
    both.X = both.X.astype(np.float32)
    sc.pp.normalize_total(both, target_sum=1e4)
    sc.pp.log1p(both)
    options = {"reference": "control", "method": "wilcoxon", "tie_correct": True, "pts": True}
    both.obs["perturbation"] = both.obs["perturbation"].astype("category")
    sc.tl.rank_genes_groups(both, "perturbation", **options)
    keys = ["group", "names"]
    theirs = sc.get.rank_genes_groups_df(both, None).set_index(keys)
    theirs = theirs[theirs.index.get_level_values(0) != "control"]
    ours = sc.get.rank_genes_groups_df(predicted, None).set_index(keys).loc[theirs.index]
    np.testing.assert_allclose(ours["logfoldchanges"], theirs["logfoldchanges"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours["pct_nz_group"], theirs["pct_nz_group"], atol=1e-6)
    # a continuity correction and a tie correction apart, which scanpy lacks or has otherwise
    assert np.corrcoef(ours["scores"], theirs["scores"])[0, 1] > 0.999
    tidy = table.set_index(["perturbation", "gene"])["fdr"]
    for (group, gene), fdr in ours["pvals_adj"].items():
        assert fdr == pytest.approx(tidy[group, gene])
    first = sc.get.rank_genes_groups_df(predicted, table["perturbation"].iloc[0])
    assert (np.diff(first["scores"]) <= 0).all()


def test_the_layout_survives_a_file_and_holds_every_pair(pipe, screen, screen_split, tmp_path):
    controls = screen[screen.obs["perturbation"] == "control"]
    cells = pipe.predict(controls, screen_split["pert"][0], n_cells=20, **QUIET)
    table = pipe.effects(cells, controls, redraws=0, key_added="mine")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    stored = ad.read_h5ad(tmp_path / "cells.h5ad").uns["mine"]
    names = [f"{kind}: {screen_split['pert'][0]}" for kind in ("type_A", "type_B")]
    assert set(stored["names"].dtype.names) == set(names)
    assert stored["params"]["reference"] == "control"
    assert len(table) == 2 * 60
    assert table["spread"].isna().all()


def test_shares_and_folds_are_those_of_the_cells(pipe, predicted, controls):
    table = pipe.effects(predicted, controls, redraws=0).set_index(["perturbation", "gene"])
    own = controls[controls.obs["cell_type"] == "type_B"]
    name, gene = table.index[0]
    cells = predicted[predicted.obs["perturbation"] == name, gene].X.toarray()
    assert table.loc[(name, gene), "share"] == pytest.approx((cells > 0).mean())
    assert table.loc[(name, gene), "share_control"] == pytest.approx((own[:, gene].X.toarray() > 0).mean())


def test_the_spread_is_that_of_predictions_with_other_seeds(pipe, predicted, controls):
    table = pipe.effects(predicted, controls, redraws=2).set_index(["cell_type", "perturbation", "gene"])
    numbers = predicted.obs.groupby(["cell_type", "perturbation"], observed=True).size().to_dict()
    draws = [predicted, *(pipe.predict(controls, n_cells=numbers, seed=seed, **QUIET) for seed in (5, 6))]
    tables = [pipe.effects(draw.copy(), controls, redraws=0) for draw in draws]
    folds = [one.set_index(["cell_type", "perturbation", "gene"])["log2_fold_change"] for one in tables]
    expected = pd.concat(folds, axis=1).std(axis=1, ddof=1)
    np.testing.assert_allclose(table["spread"], expected.loc[table.index], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(table["log2_fold_change"], folds[0].loc[table.index])
    assert table["spread"].max() > 0


def test_controls_with_fewer_genes_are_compared_over_those(pipe, screen, screen_split):
    controls = screen[screen.obs["perturbation"] == "control", 10:].copy()
    with pytest.warns(UserWarning, match="gene panel"):
        cells = pipe.predict(controls, screen_split["pert"][0], "type_A", n_cells=10, **QUIET)
    table = pipe.effects(cells, controls, redraws=0)
    assert set(table["gene"]) == set(controls.var_names)


def test_what_does_not_fit_is_refused(pipe, predicted, controls):
    with pytest.raises(EvaeError, match="redraws is -1; give 0 or more"):
        pipe.effects(predicted, controls, redraws=-1)
    with pytest.raises(EvaeError, match=r"have 9 genes, .* 60; give cells that this model predicted"):
        pipe.effects(predicted[:, :9].copy(), controls)
    with pytest.raises(EvaeError, match="no obs column 'perturbation'"):
        pipe.effects(ad.AnnData(predicted.X, obs=predicted.obs[["cell_type"]]), controls)
    with pytest.raises(EvaeError, match="no control has 'type_B'"):
        pipe.effects(predicted, controls[controls.obs["cell_type"] == "type_A"].copy())


def test_the_command_writes_a_table_or_annotated_cells(run, predicted, screen_file, tiny_checkpoint, tmp_path):
    cells = tmp_path / "predicted.h5ad"
    predicted.copy().write_h5ad(cells)
    words = ["predicted-effects", tiny_checkpoint, cells, "--controls", screen_file, "--redraws", "1", "--out"]
    done = run(*words, tmp_path / "genes.csv")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "genes.csv")
    assert len(table) == 2 * 60
    assert table["spread"].notna().all()
    done = run(*words, tmp_path / "annotated.h5ad")
    assert done.code == 0, done.err
    annotated = ad.read_h5ad(tmp_path / "annotated.h5ad")
    np.testing.assert_array_equal(annotated.X.toarray(), predicted.X.toarray())
    expected = as_rank_genes_groups(table, "control")
    assert set(annotated.uns["rank_genes_groups"]["names"].dtype.names) == set(expected["names"].dtype.names)
    assert "name one" in run(*words, tmp_path / "genes.png").err
