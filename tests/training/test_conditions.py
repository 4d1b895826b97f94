"""Perturbations by feature vector or as the sum of parts, cell types by context: what was trained may be asked for."""

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.mixture import Sources
from evae.models import EvaeError, EvaeModel
from evae.training.conditions import N_SAMPLES, control_contexts
from evae.training.feature_tables import read_feature_table
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

SHORT = ["max_steps=12", "batch_size=64", "warmup_steps=2", "save_every=6", "eval_every=6", "learning_rate=1e-2"]
SIZES = ["model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=16"]
CODERS = ["model.n_latents=3", "model.encoder=mlp", "model.decoder=mlp", "model.fsq_levels=[4,4]"]
NAMES = ["A", "B", "A+C", "A+ctrl"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset with combinations and the control `ctrl`, a tokenizer, and a function that trains a prior."""
    folder = tmp_path_factory.mktemp("conditions")
    cells = simulate_perturb_seq(n_cells=300, n_genes=40, n_cell_types=2, n_perturbations=4, n_without_effect=1)
    renamed = dict(
        zip(["control", *sorted(set(cells.obs["perturbation"]) - {"control"})], ["ctrl", *NAMES], strict=True)
    )
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).map(renamed)
    cells.write_h5ad(folder / "cells.h5ad")
    dataset = prepare_dataset(
        folder / "cells.h5ad", folder / "dataset", perturbation_key="perturbation", cell_type_key="cell_type",
        control="ctrl", split="random:0.1", progress=False,
    )  # fmt: skip
    common = [f"dataset={dataset}", *SHORT, *SIZES]
    own = [f"output_dir={folder / 'tokenizer'}", *CODERS, "model.encoder_layers=1", "model.decoder_layers=1"]
    tokenizer = train_tokenizer(load_settings("tokenizer", None, [*common, *own]))

    def prior(name, *more):
        own = [f"output_dir={folder / name}", f"tokenizer={tokenizer}", "model.num_hidden_layers=1", *more]
        return train_prior(load_settings("prior", None, [*common, *own]))

    return prior, cells, tokenizer, dataset


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Features of all parts but B, and of two perturbations that are in no data."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("features") / "features.npz"
    np.savez(path, genes=np.array(["NEW", "A", "OTHER", "C"]), emb=rng.normal(size=(4, 5)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def combined(made):
    return evae.pipeline(made[0]("combined"), device="cpu")


@pytest.fixture(scope="module")
def featured(made, table):
    return evae.pipeline(made[0]("featured", f"perturbation_features={table}"), device="cpu")


@pytest.fixture(scope="module")
def by_context(made):
    return evae.pipeline(made[0]("context", "model.cell_type_context=true"), device="cpu")


def draw(pipe, perturbation, cell_type="type_A", **options):
    return pipe.predict(None, perturbation, cell_type, n_cells=30, progress=False, **options).X.toarray()


def vector(pipe, *names):
    return pipe.model.condition.perturbation(len(names), pipe.processor.perturbation_ids(names)).detach()


def test_a_combination_is_the_sum_of_its_parts(combined):
    units = combined.processor.perturbation_units
    assert units == ["ctrl", "A", "C", "B"]  # in the order of the dataset, A+C before B
    assert combined.model.config.n_perturbations == 4
    torch.testing.assert_close(vector(combined, "A+C"), vector(combined, "A") + vector(combined, "C"))
    torch.testing.assert_close(vector(combined, "A+ctrl", "A+C")[:1], vector(combined, "A"))
    unseen = draw(combined, "B+C")  # never seen together
    assert unseen.shape == (30, 40)
    assert not torch.equal(vector(combined, "A+C"), vector(combined, "A"))
    with pytest.raises(EvaeError, match="unknown perturbation 'D'"):
        draw(combined, "A+D")
    assert combined.predict(None, "B+C", "type_A", 2, progress=False).obs["support"].unique().tolist() == ["unseen"]


def test_without_combinations_in_training_none_may_be_asked_for(pipe, screen_split):
    one, other = screen_split["pert"]
    with pytest.raises(EvaeError, match="unknown perturbation"):
        pipe.predict(None, f"{one}+{other}", "type_A", 2, progress=False)


def test_an_unseen_perturbation_raises_with_learned_vectors_and_works_with_features(combined, featured, capsys):
    with pytest.raises(EvaeError, match="unknown perturbation 'NEW'"):
        draw(combined, "NEW")
    assert featured.processor.perturbation_units == ["ctrl", "B", "NEW", "A", "OTHER", "C"]
    cells = {name: draw(featured, name) for name in ("NEW", "OTHER", "NEW+B")}
    assert (cells["NEW"] != cells["OTHER"]).any()
    torch.testing.assert_close(vector(featured, "NEW+B"), vector(featured, "NEW") + vector(featured, "B"))
    with pytest.raises(EvaeError, match=r"unknown perturbation 'NEWW'\. Did you mean 'NEW'"):
        draw(featured, "NEWW")


def test_the_command_names_what_is_near_to_a_gene_that_the_feature_table_lacks(featured, tmp_path, run):
    given = ("predict", featured.checkpoint.name, "--cell-type", "type_A", "--n-cells", 5, "--out", tmp_path / "o.h5ad")
    for perturbation, wanted in (("OTHE", "'OTHE'. Did you mean 'OTHER'?"), ("A+NEWW", "'NEWW'. Did you mean 'NEW'?")):
        refused = run(*given, "--perturbation", perturbation)
        assert refused.code == 2
        assert f"unknown perturbation {wanted}" in refused.err
    assert not (tmp_path / "o.h5ad").exists()
    assert run(*given, "--perturbation", "NEW").code == 0


def test_features_are_projected_and_stored(featured, table, tmp_path):
    known = featured.model.condition.perturbation
    names, every, source = read_feature_table(table)
    raw = every[names.index("OTHER")]
    assert featured.model.config.perturbation_feature_source == source == f"{table.name}: {every.shape[1]} features"
    scaled = torch.from_numpy((raw - every.mean()) / every.std(ddof=1))
    torch.testing.assert_close(vector(featured, "OTHER")[0], known.projection(scaled), atol=1e-5, rtol=1e-4)
    featured.model.save_pretrained(tmp_path)
    featured.processor.save_pretrained(tmp_path)
    again = evae.pipeline(tmp_path, device="cpu")
    np.testing.assert_array_equal(draw(again, "NEW"), draw(featured, "NEW"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "npz"])
def test_feature_tables(tmp_path, kind):
    path = tmp_path / f"features.{kind}"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    frame = pd.DataFrame(values, columns=list("xyz"))
    frame.insert(0, "gene", ["G1", "G2"])
    if kind == "npz":
        np.savez(path, genes=np.array(["G1", "G2"]), emb=values)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pandas(frame), path)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    names, features, _ = read_feature_table(path)
    assert names == ["G1", "G2"]
    np.testing.assert_array_equal(features, values)


def test_bad_feature_tables_are_named(tmp_path, made, table):
    (tmp_path / "text.csv").write_text("gene,x\nG1,1\nG2,much\n")
    (tmp_path / "twice.csv").write_text("gene,x\nG1,1\nG1,2\n")
    (tmp_path / "nan.csv").write_text("gene,x\nG1,nan\n")
    (tmp_path / "none.npz").write_bytes(b"no archive")
    (tmp_path / "strange.csv").write_text("gene,x\nG1,1\n")
    for name, message in (
        ("text.csv", "cannot be read"), ("twice.csv", "names something twice"), ("nan.csv", "finite numbers"),
        ("none.npz", "cannot be read"), ("no.npz", "does not exist"), ("x.txt", "does not exist"),
        ("strange.csv", "names none of the dataset's perturbations"),
    ):  # fmt: skip
        with pytest.raises(EvaeError, match=message):
            made[0](f"bad-{name}", f"perturbation_features={tmp_path / name}")


def test_a_cell_type_never_seen_is_asked_for_by_its_controls(made, by_context, combined):
    controls = made[1][made[1].obs["perturbation"] == "ctrl"].copy()
    controls.obs["cell_type"] = controls.obs["cell_type"].astype(str).replace({"type_A": "never seen"})
    options = {"n_cells": 20, "progress": False}
    predicted = by_context.predict(controls, "A", **options)
    assert set(predicted.obs["cell_type"]) == {"never seen", "type_B"}
    assert set(predicted.obs["support"][predicted.obs["cell_type"] == "never seen"]) == {"unseen"}
    other = controls.copy()
    other.X = np.ascontiguousarray(other.X.toarray()[:, ::-1])  # other cells, the same library sizes
    assert (by_context.predict(other, "A", **options).X != predicted.X).nnz
    with pytest.raises(EvaeError, match="unknown cell type 'never seen'"):
        combined.predict(controls, "A", **options)
    with pytest.raises(EvaeError, match="unknown cell type 'never seen'"):  # without controls there is no context
        by_context.predict(None, "A", "never seen", **options)


def test_a_context_is_the_mean_embedding_of_the_controls(made, by_context, monkeypatch):
    _, cells, tokenizer, dataset = made
    controls = cells[(cells.obs["perturbation"] == "ctrl") & (cells.obs["cell_type"] == "type_A")].copy()
    given = []
    sample = by_context.model.sample_cells
    monkeypatch.setattr(by_context.model, "sample_cells", lambda **k: (given.append(k), sample(**k))[1])
    by_context.predict(controls, "A", n_cells=3, progress=False)
    expected = by_context.embed(controls.copy(), progress=False).obsm["X_evae"].mean(0)
    np.testing.assert_allclose(given[0]["context"].numpy(), np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-5)
    assert "cell_type_ids" not in given[0]
    # by name, the stored context of training's controls stands for a cell type
    table = by_context.model.condition.cell_type
    contexts = control_contexts(EvaeModel.from_pretrained(tokenizer), Sources([dataset]), 0, "cpu", print)
    assert contexts.shape == (2, N_SAMPLES, 6)
    np.testing.assert_allclose(table.contexts.numpy(), contexts[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table(1, torch.tensor([1])), table(1, None, table.contexts[1:]))
    assert len(np.unique(contexts[0], axis=0)) > N_SAMPLES // 2


def test_by_name_or_by_context_but_not_as_the_prior_does_not_know_it(by_context, combined):
    size = torch.full((2,), 30.0)
    with pytest.raises(EvaeError, match="knows cell types by name; give cell_type_ids, not context"):
        combined.model.sample_cells(context=torch.zeros(2, 6), library_size=size)
    with pytest.raises(EvaeError, match="give one of them"):
        by_context.model.sample_cells(
            context=torch.zeros(2, 6), cell_type_ids=torch.zeros(2, dtype=torch.long), library_size=size
        )
    with pytest.raises(EvaeError, match=r"context must be \(cells, 6\), not \(2, 5\)"):
        by_context.model.sample_cells(context=torch.zeros(2, 5), library_size=size)
    with pytest.raises(EvaeError, match="3 contexts were given for 2 cells"):
        by_context.model.sample_cells(context=torch.zeros(3, 6), library_size=size)


def test_a_cell_type_without_controls_has_no_context(made, tmp_path):
    prior, cells, *_ = made
    lacking = cells[~((cells.obs["perturbation"] == "ctrl") & (cells.obs["cell_type"] == "type_B"))].copy()
    ad.AnnData(lacking.X, obs=lacking.obs, var=lacking.var).write_h5ad(tmp_path / "cells.h5ad")
    dataset = prepare_dataset(
        tmp_path / "cells.h5ad", tmp_path / "dataset", perturbation_key="perturbation", cell_type_key="cell_type",
        control="ctrl", split="random:0.1", progress=False,
    )  # fmt: skip
    with pytest.raises(EvaeError, match="'type_B' has no training controls, so it has no context"):
        prior("lacking", f"dataset={dataset}", "model.cell_type_context=true")


@pytest.mark.parametrize("kind", ["evae_ar", "evae_mdlm"])
def test_everything_at_once_trains_and_is_guided(made, table, kind):
    more = [f"perturbation_features={table}", "model.cell_type_context=true", f"model_type={kind}"]
    pipe = evae.pipeline(made[0](f"all-{kind}", *more), device="cpu")
    plain = draw(pipe, "A+NEW")
    np.testing.assert_array_equal(draw(pipe, "A+NEW", guidance_scale=1.0), plain)
    assert (draw(pipe, "A+NEW", guidance_scale=100.0, guide="all") != plain).any()


def test_misspelt_sampling_options_are_named(combined):
    with pytest.raises(EvaeError, match=r"no sampling option 'guidance'\. Did you mean 'guide' or 'guidance_scale'"):
        draw(combined, "A", guidance=2.0)
    with pytest.raises(EvaeError, match="EvaeARForCausalLM has no sampling option 'num_steps'"):
        draw(combined, "A", num_steps=2)
