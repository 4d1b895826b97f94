"""How likely cells are after each perturbation, by a prior that knows names and by one that reads control cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import evae
from evae.models.contract_evae import EvaeError
from evae.training.prior import train_prior
from evae.training.settings import load_settings


@pytest.fixture
def cells(screen):
    return screen[:40].copy()


@pytest.fixture(scope="module")
def named(trained_prior):
    return evae.pipeline(trained_prior, device="cpu")


@pytest.fixture(scope="module")
def source_pipe(screen_dataset, trained_tokenizer, small_settings, tmp_path_factory):
    more = ["model.source_cells=1", "model.condition_on_effect=true", f"dataset={screen_dataset}"]
    places = [f"tokenizer={trained_tokenizer}", f"output_dir={tmp_path_factory.mktemp('source') / 'prior'}"]
    return evae.pipeline(train_prior(load_settings("prior", None, [*small_settings["prior"], *more, *places])), "cpu")


def test_scores_are_the_log_probabilities_of_the_codes(named, cells):
    names = [str(p) for p in named.processor.perturbations[:3]]
    found = named.score(cells, names, progress=False)
    assert list(found.index) == list(cells.obs_names)
    assert list(found.columns) == names
    batch = named.processor(cells)
    codes = named.checkpoint.tokenizer.encode(batch["counts"], batch["gene_ids"])
    kinds = torch.tensor([named.processor.cell_types.index(c) for c in cells.obs["cell_type"]])
    for name in names:
        ids = named.processor.perturbation_ids([name] * len(codes))
        logits = named.model(None, ids, kinds, batch["library_size"], codes=codes).logits[..., :-1]
        expected = logits.log_softmax(-1).gather(2, codes[..., None]).sum((1, 2))
        np.testing.assert_allclose(found[name], expected.detach().numpy(), rtol=1e-4)


def test_a_prior_that_reads_cells_scores_from_controls_whatever_the_batch(source_pipe, screen):
    controls = screen[screen.obs["perturbation"] == "control"]
    cells = screen[screen.obs["perturbation"] != "control"][:30].copy()
    names = [str(p) for p in source_pipe.processor.perturbations]
    with pytest.raises(EvaeError, match="give controls"):
        source_pipe.score(cells, names, progress=False)
    one, other = (source_pipe.score(cells, names, controls, batch_size=n, progress=False) for n in (7, 64))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)
    assert np.isfinite(one.to_numpy()).all()
    more = source_pipe.score(cells, names, controls, n_prompts=1, progress=False)
    assert not np.allclose(one, more)
    mixed = screen.copy()  # perturbed cells among the controls are left out
    with pytest.warns(UserWarning, match="left out"):
        pd.testing.assert_frame_equal(source_pipe.score(cells, names, mixed, progress=False), one, rtol=1e-4)


def test_control_is_told_no_effect_and_no_name_where_it_would_copy_the_prompt(source_pipe, screen, monkeypatch):
    controls = screen[screen.obs["perturbation"] == "control"]
    told = []
    score = type(source_pipe.model).score
    monkeypatch.setattr(
        type(source_pipe.model), "score", lambda self, codes, **c: told.append(c) or score(self, codes, **c)
    )
    names = ["control", str(source_pipe.processor.perturbations[-1])]
    source_pipe.score(screen[:5], names, controls, n_prompts=1, progress=False)
    assert (told[0]["effect"] == 0).all()
    assert (told[0]["perturbation_ids"] == len(source_pipe.processor.known_units())).all()
    assert (told[1]["perturbation_ids"] == source_pipe.processor.perturbation_ids([names[1]])[0]).all()
    assert torch.equal(told[0]["source_latents"], told[1]["source_latents"])


def test_ranking_is_by_the_mean_over_each_group(named, cells):
    cells.obs["sample"] = ["a"] * 10 + ["b"] * 30
    ranked = named.rank_perturbations(cells, groupby="sample", progress=False)
    scores = named.score(cells, list(named.processor.perturbations), progress=False)
    for group, rows in ranked.groupby("group"):
        own = scores[(cells.obs["sample"] == group).to_numpy()]
        assert rows["log_likelihood"].is_monotonic_decreasing
        by_name = rows.set_index("perturbation")
        np.testing.assert_allclose(by_name["log_likelihood"], own.mean()[by_name.index], rtol=1e-4)
        assert by_name["over_control"]["control"] == 0
        shares = own.idxmax(axis=1).value_counts(normalize=True).reindex(by_name.index, fill_value=0)
        np.testing.assert_allclose(by_name["best_for"], shares)


def test_counts_of_a_layer_are_read_of_cells_and_of_controls(source_pipe, screen, tmp_path):
    cells = screen[screen.obs["perturbation"] != "control"][:20].copy()
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    expected = source_pipe.rank_perturbations(cells, controls, n_prompts=1, progress=False)
    for name, part in (("cells", cells), ("controls", controls)):
        part.layers["counts"] = part.X.copy()
        part.X = part.X * 0.5
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    how = {"layer": "counts", "n_prompts": 1, "progress": False}
    files = source_pipe.rank_perturbations(tmp_path / "cells.h5ad", tmp_path / "controls.h5ad", **how)
    memory = source_pipe.rank_perturbations(cells, controls, **how)
    pd.testing.assert_frame_equal(files, expected)
    pd.testing.assert_frame_equal(memory, expected)


def test_the_bound_of_masked_diffusion_does_not_depend_on_the_batch(
    screen, screen_dataset, trained_tokenizer, small_settings, tmp_path
):
    places = [f"dataset={screen_dataset}", f"tokenizer={trained_tokenizer}", f"output_dir={tmp_path / 'prior'}"]
    settings = load_settings("prior", None, [*small_settings["prior"], "model_type=evae_mdlm", *places])
    pipe = evae.pipeline(train_prior(settings), "cpu")
    one, other = (pipe.score(screen[:20], "control", batch_size=n, progress=False) for n in (6, 64))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)


def test_bad_questions_are_named(named, cells, monkeypatch):
    for message, call in {
        "no obs column 'smaple'": lambda: named.rank_perturbations(cells, groupby="smaple", progress=False),
        "n_prompts is 0": lambda: named.score(cells, "control", n_prompts=0),
        "KO-NONE": lambda: named.score(cells, "KO-NONE"),
        "name their cell_type": lambda: named.score(ad.AnnData(cells.X, var=cells.var), "control"),
    }.items():
        with pytest.raises(EvaeError, match=message):
            call()
    monkeypatch.delattr(type(named.model), "score")
    with pytest.raises(EvaeError, match="gives no likelihood"):
        named.score(cells, "control", progress=False)


def test_the_command_writes_the_ranking(run, trained_prior, cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    outcome = run(
        *("rank", trained_prior, tmp_path / "cells.h5ad", "--out", tmp_path / "r.csv", "--groupby", "cell_type"),
        *("--perturbation", str(evae.pipeline(trained_prior, "cpu").processor.perturbations[-1])),
    )
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(tmp_path / "r.csv")
    assert list(table) == ["group", "perturbation", "log_likelihood", "over_control", "best_for"]
    assert len(table) == 2 * cells.obs["cell_type"].nunique()
    assert "nats a cell over the control" in outcome.out


def test_the_control_is_level_with_the_best_name_on_controls(source_pipe, screen):
    """So nothing stands above it where the cells are controls; alone it would be low, being told no name."""
    own = screen[(screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == "type_A")][:60].copy()
    how = {"n_prompts": 2, "progress": False, "seed": 5}
    table = source_pipe.rank_perturbations(own, own, **how).set_index("perturbation")
    alone = source_pipe.score(own, list(table.index), own, **how).mean()
    assert table["over_control"].max() == pytest.approx(0, abs=1e-6)
    lead = alone.max() - alone["control"]
    assert lead > 0
    for name in table.index.drop("control"):
        assert table["over_control"][name] == pytest.approx(alone[name] - alone["control"] - lead, abs=1e-4)
    np.testing.assert_allclose(table["log_likelihood"], alone[table.index], rtol=1e-6)  # as they are


def test_the_command_draws_true_against_ranked_perturbations(run, trained_prior, cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    words = ["rank", trained_prior, tmp_path / "cells.h5ad", "--out", tmp_path / "r.tsv"]
    picture = ["--confusion", tmp_path / "c.png"]
    refused = run(*words, *picture)
    assert (refused.code, "--confusion needs --groupby" in refused.err) == (2, True)
    done = run(*words, *picture, "--groupby", "perturbation")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "r.tsv", sep="\t")
    best = table.drop_duplicates("group")
    right = (best["group"] == best["perturbation"]).sum()
    assert f"true one first for {right}," in done.out
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
