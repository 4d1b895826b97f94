"""The pipeline: what predictions hold, what they take from the controls, and what is refused."""

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.loader import DatasetInfo
from evae.evaluation.cells.inputs import open_source
from evae.inference.checkpoint import Checkpoint
from evae.inference.pipeline import Pipeline
from evae.models.contract_evae import EvaeError

QUIET = {"progress": False}


def totals(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.X.sum(1)).ravel()


def test_predicted_cells_are_raw_counts_over_the_panel(pipe, controls, screen_split):
    names = screen_split["pert"]
    predicted = pipe.predict(controls, perturbation=names, n_cells=20, **QUIET)
    assert predicted.shape == (2 * 2 * 20, 60)
    assert sp.issparse(predicted.X)
    assert predicted.X.format == "csr"
    assert (predicted.X.data > 0).all()
    assert (predicted.X.data == np.floor(predicted.X.data)).all()
    assert list(predicted.var_names) == pipe.processor.genes
    pairs = predicted.obs.groupby(["cell_type", "perturbation"], observed=True).size()
    assert set(pairs) == {20}
    assert set(pairs.index) == {(c, p) for c in ("type_A", "type_B") for p in names}
    facts = predicted.uns["evae"]
    assert facts["seed"] == 0
    assert facts["gene_coverage"] == 1.0
    assert facts["versions"]["evae"] == evae.__version__


def test_support_says_what_training_saw(pipe, controls, screen_split):
    held_out, seen = screen_split["pert"][0], pipe.processor.perturbations[-1]
    support = pipe.predict(controls, [held_out, seen], n_cells=1, **QUIET).obs.set_index(["cell_type", "perturbation"])[
        "support"
    ]
    assert support["type_B", held_out] == "seen apart"
    assert support["type_A", held_out] == "seen together"
    assert support["type_B", seen] == "seen together"


def test_library_sizes_are_those_of_the_controls_of_the_cell_type(pipe, controls, screen_split):
    predicted = pipe.predict(controls, screen_split["pert"][0], **QUIET)
    for kind in ("type_A", "type_B"):
        own = totals(controls[controls.obs["cell_type"] == kind])
        drawn = predicted.obs.loc[predicted.obs["cell_type"] == kind, "library_size"]
        np.testing.assert_array_equal(np.sort(drawn), np.sort(own))  # default n_cells: each control once


def test_more_cells_than_controls_repeat_library_sizes(pipe, controls, screen_split):
    few = controls[:5]
    predicted = pipe.predict(few, screen_split["pert"][0], "type_A", n_cells=30, cell_type_key=None, **QUIET)
    assert set(predicted.obs["library_size"]) <= set(totals(few))
    assert predicted.n_obs == 30


def test_same_seed_same_cells(pipe, controls, screen_split):
    def draw(seed: int) -> np.ndarray:
        return pipe.predict(controls, screen_split["pert"], n_cells=9, seed=seed, **QUIET).X.toarray()

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_gene_order_and_further_genes_do_not_matter(pipe, controls, screen_split):
    extra = ad.AnnData(X=sp.csr_matrix(np.full((controls.n_obs, 3), 50.0)))
    extra.var_names, extra.obs_names = ["x", "y", "z"], controls.obs_names
    wider = ad.concat([extra, controls], axis=1)
    wider.obs = controls.obs
    wider = wider[:, np.random.default_rng(0).permutation(wider.n_vars)].copy()
    one = pipe.predict(controls, screen_split["pert"][0], n_cells=7, **QUIET)
    other = pipe.predict(wider, screen_split["pert"][0], n_cells=7, **QUIET)
    np.testing.assert_array_equal(one.X.toarray(), other.X.toarray())


def test_without_controls_library_sizes_come_from_training(pipe, screen_split):
    predicted = pipe.predict(None, screen_split["pert"][0], "type_A", n_cells=200, **QUIET)
    quantiles = pipe.processor.library_size_quantiles
    drawn = predicted.obs["library_size"]
    assert drawn.between(np.floor(quantiles[0]), np.ceil(quantiles[-1])).all()
    assert abs(drawn.median() - quantiles[50]) < 0.3 * quantiles[50]
    assert predicted.uns["evae"]["library_size_source"] == "training cells"
    assert "gene_coverage" not in predicted.uns["evae"]


def test_predictions_are_written_and_read(pipe, controls, screen_split, tmp_path):
    predicted = pipe.predict(controls, screen_split["pert"], n_cells=3, **QUIET)
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    read = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert read.uns["evae"]["model"] == pipe.checkpoint.name
    np.testing.assert_array_equal(read.X.toarray(), predicted.X.toarray())


class EchoPrior(torch.nn.Module):
    """Any prior will do that has `sample_cells`; this one writes its conditions into the counts."""

    config = None

    def sample_cells(self, perturbation_ids, cell_type_ids, library_size, generator):
        counts = torch.zeros(len(library_size), 60)
        counts[:, 0], counts[:, 1], counts[:, 2] = perturbation_ids, cell_type_ids, library_size
        return counts


def test_conditions_reach_any_prior_row_by_row(pipe, controls):
    echo = Pipeline(Checkpoint(EchoPrior(), pipe.processor, "echo", ""), "cpu")
    p, c = pipe.processor.perturbations, pipe.processor.cell_types
    wanted = {("type_B", p[3]): 4, ("type_A", p[1]): 3, ("type_B", p[1]): 2}
    predicted = echo.predict(controls, n_cells=wanted, batch_size=5, **QUIET)
    X = predicted.X.toarray()
    np.testing.assert_array_equal(X[:, 0], [p.index(name) for name in predicted.obs["perturbation"]])
    np.testing.assert_array_equal(X[:, 1], [c.index(name) for name in predicted.obs["cell_type"]])
    np.testing.assert_array_equal(X[:, 2], predicted.obs["library_size"])
    assert predicted.obs.groupby(["cell_type", "perturbation"], observed=True).size().to_dict() == wanted


def test_embedding_is_written_in_place_and_cell_by_cell(pipe, screen):
    cells = screen.copy()
    assert pipe.embed(cells, **QUIET) is cells
    assert cells.obsm["X_evae"].shape == (900, 6 * 2)
    assert cells.obsm["X_evae"].dtype == np.float32
    some = [5, 700, 899]  # in other chunks than before
    alone = pipe.embed(screen[some].copy(), **QUIET).obsm["X_evae"]
    np.testing.assert_allclose(alone, cells.obsm["X_evae"][some], atol=1e-5)
    assert cells.uns["X_evae"]["kind"] == "latents"
    pooled = pipe.embed(cells, "pooled", key="X_pooled", **QUIET).obsm["X_pooled"]
    assert pooled.shape == (900, 32)


def test_embedding_is_the_tokenizers_own(pipe, screen):
    dense = torch.from_numpy(screen.X[:6].toarray()).float()
    with torch.no_grad():
        expected = pipe.model.tokenizer.embed(dense)
    found = pipe.embed(screen[:6].copy(), **QUIET).obsm["X_evae"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_layer_is_read_instead_of_x(pipe, screen):
    cells = screen[:10].copy()
    expected = pipe.embed(cells.copy(), **QUIET).obsm["X_evae"]
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X.toarray())
    np.testing.assert_array_equal(pipe.embed(cells, layer="counts", **QUIET).obsm["X_evae"], expected)
    with pytest.raises(EvaeError, match="log-normalised"):
        pipe.embed(cells, **QUIET)


def test_reconstruction_keeps_cells_and_their_library_size(pipe, screen):
    cells = screen[:40]
    back = pipe.reconstruct(cells, **QUIET)
    assert list(back.obs_names) == list(cells.obs_names)
    assert (back.X.data == np.floor(back.X.data)).all()
    np.testing.assert_array_equal(back.X.toarray(), pipe.reconstruct(cells, **QUIET).X.toarray())


def test_tokenizer_alone_embeds_but_does_not_predict(trained_tokenizer, screen, controls, screen_split):
    tokenizer = evae.pipeline(trained_tokenizer, device="cpu")
    assert tokenizer.embed(screen[:3].copy(), **QUIET).obsm["X_evae"].shape == (3, 8)
    with pytest.raises(EvaeError, match="give a prior"):
        tokenizer.predict(controls, screen_split["pert"][0], n_cells=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbation": "KO-GENE"}, "unknown perturbation 'KO-GENE'. Did you mean 'KO-GENE"),
        ({"perturbation": []}, "no perturbation was named"),
        ({"cell_type": "type_Q"}, "unknown cell type 'type_Q'. Did you mean 'type_"),
        ({"n_cells": 0}, "n_cells is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"cell_type_key": "line"}, "no obs column 'line'"),
        ({"controls": None}, "without controls, name the cell_type"),
        ({"controls": None, "cell_type": "type_A"}, "how many cells"),
        ({"cell_type": ["type_A", "type_B"], "cell_type_key": None}, "name one cell_type"),
        ({"layer": "counts"}, "no layer 'counts'"),
    ],
)
def test_bad_requests_raise_with_the_mend(pipe, controls, screen_split, change, message):
    request = {"controls": controls, "perturbation": screen_split["pert"][0], **QUIET, **change}
    with pytest.raises(EvaeError) as caught:
        pipe.predict(**request)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_perturbed_cells_are_no_controls(pipe, screen, screen_split, tmp_path):
    """They are left out, aloud, in memory and backed: the same cells come as from the controls alone."""
    own = screen[screen.obs["perturbation"] == "control"].copy()
    expected = pipe.predict(own, screen_split["pert"][0], **QUIET)
    screen.write_h5ad(tmp_path / "screen.h5ad")
    for cells in (screen, ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")):
        with pytest.warns(UserWarning, match=rf"^{own.n_obs} of 900 cells are controls .* the other .* were left out"):
            predicted = pipe.predict(cells, screen_split["pert"][0], **QUIET)
        np.testing.assert_array_equal(predicted.X.toarray(), expected.X.toarray())


def test_controls_of_another_name_are_named(pipe, controls, screen_split):
    controls.obs["perturbation"] = "NT"
    with pytest.raises(EvaeError, match=r"no cell of the controls has the control label 'control'.*control=.NAME"):
        pipe.predict(controls, screen_split["pert"][0], n_cells=2, **QUIET)
    assert pipe.predict(controls, screen_split["pert"][0], "type_A", 3, control="NT", **QUIET).n_obs == 3
    del controls.obs["perturbation"]
    with pytest.raises(EvaeError, match="have no obs column 'perturbation'"):
        pipe.predict(controls, screen_split["pert"][0], n_cells=2, control="NT", **QUIET)


def test_controls_of_another_label_must_be_renamed_knowingly(pipe, controls, screen_split):
    controls.obs["cell_type"] = "PBMC"
    with pytest.raises(EvaeError, match="set cell_type_key=None"):
        pipe.predict(controls, screen_split["pert"][0], "type_A", n_cells=2, **QUIET)
    predicted = pipe.predict(controls, screen_split["pert"][0], "type_A", n_cells=2, cell_type_key=None, **QUIET)
    assert set(predicted.obs["cell_type"]) == {"type_A"}


@pytest.mark.parametrize(("share", "warned"), [(0.8, True), (0.95, False)])
@pytest.mark.parametrize("entrance", ["predict", "embed", "reconstruct"])
def test_missing_genes_are_said_aloud(pipe, controls, entrance, share, warned):
    some = controls[:, : int(share * controls.n_vars)].copy()
    some = some[np.asarray(some.X.sum(1)).ravel() > 0].copy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if entrance == "predict":
            pipe.predict(some, pipe.processor.perturbations[1], n_cells=2, **QUIET)
        else:
            getattr(pipe, entrance)(some, **QUIET)
    said = [str(w.message) for w in caught if "gene panel" in str(w.message)]
    assert len(said) == warned
    assert all("measure 80% of the model's gene panel" in message for message in said)


def test_genes_in_other_case_are_named(pipe, controls):
    other = controls.copy()
    other.var_names = [name.lower() for name in other.var_names]
    with pytest.raises(EvaeError, match=r"60 of the missing genes differ in upper and lower case only \('gene"):
        pipe.predict(other, pipe.processor.perturbations[1], n_cells=2)


def test_the_pipeline_says_what_it_knows(pipe):
    text = repr(pipe)
    assert pipe.processor.perturbations[1] in text
    assert pipe.processor.cell_types[0] in text
    assert f"control '{pipe.processor.control}'" in text


def test_too_little_gene_coverage_raises(pipe, controls, screen_split):
    with pytest.raises(EvaeError, match="only 20 of 60 panel genes"):
        pipe.predict(controls[:, :20], screen_split["pert"][0], n_cells=2, **QUIET)


def test_progress_bar_counts_cells(pipe, controls, screen_split, capsys, monkeypatch):
    monkeypatch.setattr("evae.common.progress.watched", lambda: True)
    pipe.predict(controls, screen_split["pert"][0], n_cells=4)
    assert "8/8" in capsys.readouterr().err
    pipe.predict(controls, screen_split["pert"][0], n_cells=4, **QUIET)
    assert capsys.readouterr() == ("", "")


def test_loads_from_a_relative_path(trained_prior: Path, monkeypatch, tmp_path):
    monkeypatch.chdir(trained_prior.parent)
    assert evae.pipeline(trained_prior.name, device="cpu").checkpoint.is_prior


def test_repeated_entries_are_summed_at_every_entrance(
    pipe, controls, screen, screen_dataset, repeat_entries, tmp_path
):
    again = repeat_entries(controls)
    names = pipe.processor.perturbations[1]
    drawn = [pipe.predict(cells, names, n_cells=10, **QUIET) for cells in (controls, again)]
    assert (drawn[0].X != drawn[1].X).nnz == 0
    assert drawn[0].obs.equals(drawn[1].obs)
    embedded = [pipe.embed(cells.copy(), **QUIET).obsm["X_evae"] for cells in (controls, again)]
    np.testing.assert_array_equal(*embedded)
    repeat_entries(screen).write_h5ad(tmp_path / "again.h5ad")
    info = DatasetInfo.load(screen_dataset)
    folder = prepare_dataset(
        tmp_path / "again.h5ad", tmp_path / "dataset", perturbation_key="perturbation", cell_type_key="cell_type",
        control="control", split=info.split, progress=False,
    )  # fmt: skip
    for shard in info.statistics["shards"]:
        assert pq.read_table(folder / shard["path"]).equals(pq.read_table(screen_dataset / shard["path"]))


@pytest.mark.parametrize("entrance", ["predict", "embed", "reconstruct", "evaluate"])
def test_a_part_of_a_backed_anndata(pipe, screen_file, entrance):
    """anndata 0.12.19 cannot take a part of a part of a backed AnnData, so it is read, or refused in one line."""
    backed = ad.read_h5ad(screen_file, backed="r")
    part = backed[(backed.obs["perturbation"] == "control").to_numpy()]
    whole = part.to_memory()
    try:
        if entrance == "predict":
            drawn = [pipe.predict(c, pipe.processor.perturbations[1], n_cells=5, **QUIET).X for c in (part, whole)]
            assert (drawn[0] != drawn[1]).nnz == 0
        elif entrance == "reconstruct":
            drawn = [pipe.reconstruct(cells, **QUIET).X for cells in (part, whole)]
            assert (drawn[0] != drawn[1]).nnz == 0
        elif entrance == "evaluate":
            rows = np.arange(part.n_obs)
            read = [open_source(c, "cells", "perturbation", "cell_type") for c in (part, whole)]
            digests = [source.cells(source.genes, rows).digest() for source in read]
            assert digests[0] == digests[1]
        else:
            with pytest.raises(EvaeError, match="to_memory"):
                pipe.embed(part, **QUIET)
    finally:
        backed.file.close()


def test_controls_may_be_a_file(pipe, controls, tmp_path):
    controls.write_h5ad(tmp_path / "controls.h5ad")
    name = pipe.processor.perturbations[1]
    from_file, from_path, in_memory = (
        pipe.predict(c, name, n_cells=5, **QUIET)
        for c in (str(tmp_path / "controls.h5ad"), tmp_path / "controls.h5ad", controls)
    )
    assert (from_file.X != in_memory.X).nnz == 0
    assert (from_path.X != in_memory.X).nnz == 0
    with pytest.raises(EvaeError, match="no such file"):
        pipe.predict("nowhere.h5ad", name, n_cells=5)
    with pytest.raises(EvaeError, match="must be an AnnData or the path of a file of them, not a DataFrame"):
        pipe.predict(controls.to_df(), name, n_cells=5)


@pytest.mark.parametrize("n_cells", ["5", 5.0, True])
def test_a_number_of_cells_is_a_whole_number(pipe, n_cells):
    name, cell_type = pipe.processor.perturbations[1], pipe.processor.cell_types[0]
    with pytest.raises(EvaeError, match="give a whole number"):
        pipe.predict(None, name, cell_type, n_cells)
    with pytest.raises(EvaeError, match="give a whole number"):
        pipe.predict(None, n_cells={(cell_type, name): n_cells})
    assert pipe.predict(None, name, cell_type, np.int64(5), **QUIET).n_obs == 5
