"""The whole benchmark on simulated screens: the reverters are found, and what is written can be read."""

import json
import sys
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae import reversion
from evae.cli.reversion import _targets
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.screen import ReversionScreen, simulate_reversion_screen, write_reversion_screen
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.cells.projection import fit_projection
from evae.inference.checkpoint import load_checkpoint
from evae.inference.embedding_files import embed_file
from evae.models.contract_evae import EvaeError
from evae.reversion import baselines as baselines_module
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

FAST = {"n_permutations": 2_000, "n_bootstrap": 200, "n_shuffles": 3, "progress": False}


@pytest.fixture(scope="module")
def encoder(stressed_file, tmp_path_factory):
    """A barely trained tokenizer of the screen's genes; that trained ones find the reverters, scripts/ shows."""
    folder = tmp_path_factory.mktemp("encoder")
    keys = {"perturbation_key": "gene_target", "cell_type_key": "condition", "control": "SAFE_TARGET"}
    prepare_dataset(stressed_file, folder / "data", progress=False, **keys)
    values = [
        *(f"dataset={folder / 'data'}", f"output_dir={folder / 'tokenizer'}", "max_steps=30", "batch_size=32"),
        *("warmup_steps=10", "eval_every=30", "save_every=30", "learning_rate=0.003", "model.encoder=mlp"),
        *("model.decoder=mlp", "model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=32"),
        *("model.n_latents=4", "model.encoder_layers=2", "model.decoder_layers=2", "model.fsq_levels=[8, 8]"),
        *("model.standardize_latents=true", "model.count_splitting=true", "model.condition_on_library=true"),
    ]
    return train_tokenizer(load_settings("tokenizer", None, values))


@pytest.fixture(scope="module")
def result(stressed, names, encoder):
    reference = [*names.positives, *(t for t in set(stressed.obs["gene_target"]) if t not in names.positives)]
    return reversion.run(
        stressed,
        names,
        model=encoder,
        baselines=("pca", "de"),
        n_components=8,
        reference=reference,
        device="cpu",
        **FAST,
    )


def test_true_reverters_are_found_by_pca_and_differential_expression(result):
    table = result.table()
    assert list(table.index) == ["evae latents", "pca", "de"]
    found = table.loc[["pca", "de"]]
    assert (found["auc"] >= 0.9).all()  # 4 of 30: the best there is is 0.933
    assert (found["p_value"] < 0.005).all()
    assert (found["selectivity_auc"] >= 0.8).all()
    assert (found["overlap_10"] >= 0.4).all()
    assert table.loc["pca", "ch_condition"] > 10
    assert np.isnan(table.loc["de", "ch_condition"])
    assert table.loc["evae latents"].notna().all()


def test_null_screens_are_chance(stressed, names):
    """Shuffled anew by hand, one null screen has the same AUC; over many the mean is 0.5."""
    vectors = fit_projection(log1p_cp10k(stressed.X, "raw counts"), 6)(log1p_cp10k(stressed.X, "raw counts"))
    fast = FAST | {"n_shuffles": 40}
    method = reversion.run(stressed, names, embeddings={"mine": vectors}, **fast).methods["mine"]
    for null, real in ((method.null["auc"], method.enrichment.auc), (method.null["selectivity_auc"], 0.5)):
        assert len(null) == 40
        assert abs(null.mean() - 0.5) < 4 * null.std() / 40**0.5
        assert null.std() > 0.03
        assert real >= 0.5
    assert method.enrichment.auc > method.null["auc"].max()
    shuffled = stressed.copy()
    rng = np.random.default_rng(0)  # of the first shuffle, as `ScreenSums` draws it: untreated cells first
    labels = shuffled.obs["gene_target"].astype(str).to_numpy()
    known = sorted(set(labels))
    codes = np.array([known.index(label) for label in labels])
    for arm in (names.untreated, names.treated):
        rows = np.flatnonzero(shuffled.obs["condition"] == arm)
        codes[rows] = rng.permutation(codes[rows])
        for _ in range(39):
            rng.permutation(rows)
    shuffled.obs["gene_target"] = pd.Categorical(np.array(known)[codes])
    again = reversion.run(shuffled, names, embeddings={"mine": vectors}, **FAST).methods["mine"]
    assert again.enrichment.auc == pytest.approx(method.null["auc"][0])
    assert again.selectivity.auc == pytest.approx(method.null["selectivity_auc"][0])


def test_reverted_cells_lie_between_stress_and_rest(result, names):
    for name in ("pca", "de"):
        method = result.methods[name]
        stressed = method.controls["SAFE_TARGET"]
        reverted = method.ranking.loc[list(names.positives), "distance"]
        assert (reverted < 0.75 * stressed).all()
        assert method.ranking["distance"].median() > reverted.max()


def test_streaming_the_model_equals_reading_its_file(stressed_file, names, encoder, tmp_path):
    embed_file(load_checkpoint(encoder), stressed_file, tmp_path / "e.parquet", "pooled", device="cpu", progress=False)
    found = reversion.run(
        stressed_file, names, model=load_checkpoint(encoder), kinds=("pooled", "codes"), device="cpu",
        embeddings={"stored": tmp_path / "e.parquet"}, **FAST,
    ).methods  # fmt: skip
    assert list(found) == ["evae pooled", "evae codes", "stored"]
    pd.testing.assert_frame_equal(found["evae pooled"].ranking, found["stored"].ranking)
    assert found["evae pooled"].place.separation == found["stored"].place.separation


def test_a_file_gives_what_the_anndata_gives(stressed_file, names, result):
    found = reversion.run(stressed_file, names, baselines=("pca", "de"), n_components=8, **FAST)
    for name in ("pca", "de"):
        pd.testing.assert_frame_equal(found.methods[name].ranking, result.methods[name].ranking)


def test_without_reversion_nothing_is_found():
    cells = simulate_reversion_screen(3_000, seed=3, n_genes=120, n_targets=30, n_reverters=4, reversion=0.0)
    names = reversion.ScreenNames(positives=tuple(cells.uns["simulation"]["reverters"]))
    found = reversion.run(cells, names, baselines=("pca", "de"), n_components=8, **FAST).table()
    assert (found["p_value"] > 0.02).all()


def test_pca_is_that_of_all_cells_where_they_are_few(stressed, names, result):
    matrix = log1p_cp10k(stressed.X, "raw counts")
    expected = reversion.run(stressed, names, embeddings={"pca": fit_projection(matrix, 8)(matrix)}, **FAST)
    own, other = result.methods["pca"].ranking, expected.methods["pca"].ranking
    np.testing.assert_allclose(own["distance"].sort_index(), other["distance"].sort_index(), atol=1e-8)


def test_variable_genes_are_chosen_where_there_are_many(stressed, names, monkeypatch):
    expression = baselines_module.Expression
    source, screen = baselines_module_inputs(stressed, names)
    few = expression.of(source, screen, n_genes=40)
    assert len(few.genes) == 40
    rows, matrix = next(few.blocks())
    assert matrix.shape == (len(rows), 40)
    expected = log1p_cp10k(stressed[:, few.genes].X, "raw counts")
    assert abs(matrix - expected).max() < 1e-6
    some = np.array([3, 900, 901, 2999])
    assert abs(few.cells(some) - expected[some]).max() < 1e-6


def baselines_module_inputs(cells, names):
    from evae.data.reading.anndata_counts import AnnDataCounts
    from evae.reversion.screen import Screen

    source = AnnDataCounts(cells)
    return source, Screen.read(source, names)


def test_the_targeted_gene_is_left_out_of_its_profile(stressed, names):
    source, screen = baselines_module_inputs(stressed, names)
    place = baselines_module.differential_profiles(baselines_module.Expression.of(source, screen))
    target = next(t for t in screen.targets if t in source.genes)
    column = source.genes.index(target)
    assert (place.centroids[:, screen.targets.index(target), column] == 0).all()
    assert np.isfinite(place.centroids).all()
    assert place.sizes.max() <= baselines_module.DE_CELLS


class FakeUMAP:
    """The first columns, far from the origin: the real one compiles itself for a minute."""

    def __init__(self, n_components, **_):
        self.n = n_components

    def fit_transform(self, values):
        return values[:, : self.n] + 100


def test_umap_embeds_a_sample_and_is_centred(stressed, names, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=FakeUMAP))
    monkeypatch.setattr(baselines_module, "UMAP_CELLS", 20 * 64)
    found = reversion.run(stressed, names, baselines=("umap",), umap_components=3, n_components=8, **FAST)
    place = found.methods["umap"].place
    assert place.width == 3
    assert place.sizes.max() == 20
    assert place.n_skipped == 3_000 - place.sizes.sum()
    assert found.table().loc["umap", "auc"] > 0.85  # as the components have it; uncentred it would be chance


def test_umap_that_is_not_installed_is_named(stressed, names, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(EvaeError, match="needs umap-learn"):
        reversion.run(stressed, names, baselines=("umap",), **FAST)


def test_differential_expression_needs_treated_controls(stressed, names):
    treated_controls = (stressed.obs["condition"] == "Treated") & stressed.obs["gene_target"].isin(names.controls)
    with pytest.raises(EvaeError, match="needs treated control cells"):
        reversion.run(stressed[~treated_controls].copy(), names, baselines=("de",), **FAST)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "there is nothing to compare"),
        ({"baselines": ("pca", "umpa")}, "there is no baseline 'umpa'. Did you mean 'umap'"),
        ({"baselines": ("pca",), "embeddings": {"pca": np.ones((3_000, 2))}}, "stands? more than once"),
        ({"embeddings": {"mine": np.full((3_000, 2), np.nan)}}, "no embedding to compare with"),
        ({"baselines": ("pca",), "reference": ["A", "A"]}, "stands? more than once"),
        ({"baselines": ("pca",), "reference": "nowhere.txt"}, "no such file"),
        ({"baselines": ("pca",), "reference": []}, "names no target"),
    ],
)
def test_what_cannot_be_compared_is_refused(stressed, names, arguments, message):
    with pytest.raises(EvaeError, match=message):
        reversion.run(stressed, names, **arguments, **FAST)


def test_disjoint_gene_panels_are_refused(stressed, names, encoder):
    other = stressed.copy()
    other.var_names = [f"mouse{i}" for i in range(other.n_vars)]
    with pytest.raises(EvaeError, match="only 0 of 120 panel genes"):
        reversion.run(other, names, model=encoder, device="cpu", **FAST)


def test_report_and_json_and_rankings(result, tmp_path):
    page = result.report(tmp_path).read_text()
    for text in ("Reversion benchmark", "evae latents", "First 25 targets", "data:image/png", "gene coverage 100.0%"):
        assert text in page
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["methods"]["pca"]["enrichment"]["auc"] == result.methods["pca"].enrichment.auc
    assert len(stored["methods"]["de"]["ranking"]) == 30
    rankings = pd.read_csv(tmp_path / "rankings.csv")
    assert list(rankings["method"].unique()) == ["evae latents", "pca", "de"]
    assert rankings.groupby("method")["rank"].min().tolist() == [1, 1, 1]
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"enrichment.png", "selectivity.png"}
    assert result.top(5).shape == (5, 3)


def test_cells_without_a_vector_are_counted(stressed, names, tmp_path):
    vectors = pd.DataFrame(np.random.default_rng(0).normal(size=(stressed.n_obs, 3)), index=stressed.obs_names)
    vectors.iloc[7:].to_csv(tmp_path / "some.csv")
    result = reversion.run(stressed, names, embeddings={"some": str(tmp_path / "some.csv")}, **FAST)
    cells = result.stamp["n_cells"]
    total = cells["treated"] + cells["untreated"]
    skipped = result.methods["some"].place.n_skipped
    assert 0 < skipped <= 7
    assert f"some: {skipped:,} of {total:,} cells have no vector and are left out" in result.notes()
    assert all(not note.startswith("pca") for note in result.notes())


def test_command(run, stressed_file, names, encoder, tmp_path):
    cells = ad.read_h5ad(stressed_file)
    cells.obs = cells.obs.rename(columns={"condition": "arm", "gene_target": "ko"})
    cells.obs["arm"] = cells.obs["arm"].cat.rename_categories({"Treated": "stress", "Untreated": "rest"})
    cells.obsm["X_mine"] = np.random.default_rng(0).normal(size=(cells.n_obs, 4))
    cells.write_h5ad(tmp_path / "screen.h5ad")
    (tmp_path / "reference.txt").write_text("target\n" + "\n".join(names.positives))
    arguments = (
        *(
            "reversion",
            tmp_path / "screen.h5ad",
            "--model",
            encoder,
            "--embedding",
            "mine=X_mine",
            "--baselines",
            "pca",
        ),
        *("--condition-key", "arm", "--target-key", "ko", "--treated", "stress", "--untreated", "rest"),
        *("--control", "SAFE_TARGET,NO-TARGET", "--positive", ",".join(names.positives)),
        *("--permutations", 500, "--shuffles", 2, "--components", 8, "--reference", tmp_path / "reference.txt"),
    )
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    for text in ("evae latents", "mine", "pca", "AUC", "report.html"):
        assert text in outcome.out
    stored = json.loads((tmp_path / "screen_reversion" / "result.json").read_text())
    assert stored["methods"]["pca"]["enrichment"]["auc"] > 0.9
    assert abs(stored["methods"]["mine"]["enrichment"]["auc"] - 0.5) < 0.4
    assert "--overwrite" in run(*arguments).err
    assert run("reversion", tmp_path / "screen.h5ad", "--preset", "telohaec", "--out", tmp_path / "x").err == (
        f"error: {tmp_path / 'screen.h5ad'} has no obs column 'condition'. Known are 'arm', 'ko'.\n"
    )
    assert "write NAME=FILE" in run("reversion", "a.h5ad", "--positive", "A", "--embedding", "scgpt").err
    assert "there is no preset 'telohac'. Did you mean" in run("reversion", "a.h5ad", "--preset", "telohac").err


def test_targets_may_hold_commas_and_their_options_may_be_repeated(stressed_file, names, tmp_path):
    first, second, third = names.positives[:3]
    cells = ad.read_h5ad(stressed_file)
    cells.obs["gene_target"] = cells.obs["gene_target"].cat.rename_categories({first: "1,10-thing"})
    cells.write_h5ad(tmp_path / "screen.h5ad")
    given = {"positives": [f"1,10-thing,{second}", third], "controls": ["SAFE_TARGET"]}
    found = _targets(tmp_path / "screen.h5ad", None, None, None, given)
    assert found == {"positives": ("1,10-thing", second, third), "controls": ("SAFE_TARGET",)}
    plain = {"positives": ["A", "B"], "controls": None}
    assert _targets(tmp_path / "none.h5ad", None, None, None, plain) == {"positives": ("A", "B")}


def test_a_screen_of_any_size_is_written_in_blocks(tmp_path):
    truth = ReversionScreen(50, 12, 2, seed=1)
    cells = ad.read_h5ad(write_reversion_screen(tmp_path / "s.h5ad", truth, 700, block=300))
    assert cells.shape == (700, 50)
    first, arm, target = truth.cells(300, seed=0)
    assert (cells.X[:300] != first).nnz == 0
    assert list(cells.obs["gene_target"][:300]) == [truth.targets[t] for t in target]
    assert set(cells.obs["condition"]) == {"Treated", "Untreated"}
    assert (cells.obs["condition"][:300] == "Treated").tolist() == (arm == 1).tolist()
    second = truth.cells(300, seed=300)[0]
    assert (cells.X[300:600] != second).nnz == 0
    with pytest.raises(EvaeError, match="needs 0 <= n_reverters"):
        ReversionScreen(10, 5, 6)
