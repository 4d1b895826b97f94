"""What a prior reads of control cells in training: couplings, known effects, library sizes, source cells."""

import shutil
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evae
from evae.data.format import DatasetInfo
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.hub import push_run
from evae.models.contract_evae import EvaeError
from evae.training.couplings import Cells, couple, without_control
from evae.training.dry_run import dry_run
from evae.training.effects import effect_table
from evae.training.library import library_model
from evae.training.prompts import Controls, Prompts
from evae.training.settings import PriorSettings


class TestCouplings:
    def cells(self, n=40, seed=0):
        """Controls of two cell types in two batches, and perturbed cells: these moved by 5, in another order."""
        rng = np.random.default_rng(seed)
        points, order = rng.normal(size=(n, 3)), rng.permutation(n)
        controls = Cells(points, np.zeros(n, dtype=int), np.arange(n) % 2, np.zeros(n, dtype=int))
        moved = replace(controls.part(order), points=points[order] + 5, perturbation=np.ones(n, dtype=int))
        columns = ("points", "perturbation", "cell_type", "batch")
        cells = Cells(*(np.concatenate([getattr(part, name) for part in (controls, moved)]) for name in columns))
        return cells, controls, np.r_[np.arange(n), np.full(n, -1)], order

    def couple(self, cells, controls, own, **options):
        return couple(cells, controls, own, control=0, names=["a", "b"], **options)

    def test_optimal_transport_finds_the_cells_that_were_moved(self):
        *given, order = self.cells()
        sources = self.couple(*given)
        assert (sources[:40] == np.arange(40)[:, None]).all()  # a control is its own source
        assert (sources[40:] == order[:, None]).all()

    def test_random_controls_are_of_the_same_cell_type(self):
        *given, order = self.cells()
        sources = self.couple(*given, how="random", n_draws=6)
        assert sources.shape == (80, 6)
        assert (sources[40:] % 2 == order[:, None] % 2).all()
        assert (sources[40:] != order[:, None]).mean() > 0.8

    def test_a_control_that_is_read_in_a_set_stands_among_others(self):
        *given, _ = self.cells()
        sources = self.couple(*given, how="random", n_draws=6, as_set=True)
        assert (sources[:40, 0] == np.arange(40)).all()
        assert (sources[:40] % 2 == (np.arange(40) % 2)[:, None]).all()
        assert (sources[:40, 1:] != np.arange(40)[:, None]).mean() > 0.8

    def test_the_same_seed_draws_the_same(self):
        *given, _ = self.cells()
        drawn = [self.couple(*given, how="random", seed=seed) for seed in (1, 1, 2)]
        assert (drawn[0] == drawn[1]).all()
        assert (drawn[0] != drawn[2]).any()

    @pytest.mark.parametrize("how", ["optimal-transport", "random"])
    def test_controls_are_of_the_same_batch(self, how):
        cells, controls, own, order = self.cells()
        batch = np.arange(40) // 20
        cells, controls = replace(cells, batch=np.r_[batch, batch[order]]), replace(controls, batch=batch)
        sources = self.couple(cells, controls, own, how=how, n_draws=6, as_set=how == "random")
        assert (batch[sources] == cells.batch[:, None]).all()
        assert (controls.cell_type[sources] == cells.cell_type[:, None]).all()
        assert without_control(cells, controls, 0, ["a", "b"], ["one", "two"]) == ""

    def test_a_batch_without_controls_takes_those_of_other_batches(self):
        cells, controls, own, order = self.cells()
        lonely = (cells.perturbation == 1) & (cells.cell_type == 1)
        cells = replace(cells, batch=lonely.astype(int))
        sources = self.couple(cells, controls, own)
        assert (sources[40:] == order[:, None]).all()
        said = without_control(cells, controls, 0, ["a", "b"], ["one", "two"])
        assert said.startswith("20 perturbed cells have no control of their cell type in their batch ('b' in 'two')")

    def test_a_cell_type_without_controls_is_named(self):
        cells, controls, own, _ = self.cells()
        with pytest.raises(EvaeError, match="'b' has perturbed cells but no training controls"):
            self.couple(cells, replace(controls, cell_type=0 * controls.cell_type), own)


class TestEffects:
    def table(self, shift=2.0, n=60, seed=0):
        """Three cell types; perturbation 1 moves them by `shift`, 2 is seen in the first alone."""
        rng = np.random.default_rng(seed)
        labels = [(c, p) for c in range(3) for p in (0, 1) for _ in range(n)] + [(0, 2)] * n
        kinds, names = np.array(labels).T
        latents = rng.normal(size=(len(labels), 8)) + kinds[:, None] + shift * (names == 1)[:, None]
        return latents, names, kinds, effect_table(latents, names, kinds, 4, 3, 0)[0]

    def test_an_effect_is_that_of_the_other_cell_types(self):
        latents, names, kinds, table = self.table()
        changed = latents.copy()
        changed[(kinds == 1) & (names == 1)] += 50
        other, _ = effect_table(changed, names, kinds, 4, 3, 0)
        np.testing.assert_allclose(table[0, 1], 2, atol=0.7)
        assert (np.abs(other[[0, 2, 3], 1] - table[[0, 2, 3], 1]) > 1).all()
        np.testing.assert_allclose(table[1, 1], other[1, 1], rtol=0.1)

    def test_what_is_not_known_is_nan_and_the_control_0(self):
        *_, table = self.table()
        assert np.isnan(table[0, 2]).all()  # seen in this cell type alone
        assert np.isfinite(table[1:, 2]).all()
        assert np.isnan(table[:, 3]).all()
        assert (table[:, 0] == 0).all()

    def test_a_shift_within_its_error_is_shrunk(self):
        latents, names, kinds, table = self.table(shift=0.0, n=20)
        raw = latents[(kinds > 0) & (names == 1)].mean(0) - latents[(kinds > 0) & (names == 0)].mean(0)
        assert np.abs(table[0, 1]).mean() < 0.6 * np.abs(raw).mean()
        strong = self.table(shift=3.0)[-1]
        assert np.abs(strong[0, 1]).mean() > 2.5

    def test_cell_types_that_answer_in_opposite_ways_tell_little(self):
        """The mean of six cell types; where they agree, it is kept, and its error is small."""
        rng = np.random.default_rng(0)
        names, kinds = np.tile([0, 1, 2], 600), np.repeat(np.arange(6), 300)
        latents = rng.normal(size=(1800, 4))
        latents[names == 1] += 1.0  # the same everywhere
        latents[names == 2] += np.where(kinds % 2, 1.0, -0.6)[names == 2, None]
        table, errors = effect_table(latents, names, kinds, 3, 6, 0)
        np.testing.assert_allclose(table[-1, 1], 1.0, atol=0.15)
        assert np.abs(table[-1, 2]).max() < 0.05
        alone, _ = effect_table(latents, names, np.where(kinds % 2, 1, 0), 3, 2, 0)
        assert table[-1, 1].mean() > 5 * errors[-1, 1].max()
        assert (alone[0, 2] > 0.9).all()  # of a single cell type one cannot know how much others differ


class TestLibrarySizes:
    def model(self, depth):
        """`depth[c][p]` times 1,000 molecules."""
        rng, sizes, names, kinds = np.random.default_rng(0), [], [], []
        for c, row in enumerate(depth):
            for p, times in enumerate(row):
                if times:
                    sizes.append(1000 * times * np.exp(0.3 * rng.normal(size=400)))
                    names += [p] * 400
                    kinds += [c] * 400
        return library_model(
            np.concatenate(sizes), np.array(names), np.array(kinds), ["ctrl", "A", "B"], list("xyz"), 0
        )

    def test_deeper_treated_cells_of_one_batch(self):
        found = self.model([[1, 1, 1], [1, 1, 1], [0.25, 1, 0]])
        shift = found["mean"] + found["perturbations"]["B"] + found["cell_types"]["z"]
        assert 0.9 < shift < 1.6  # log 4 is 1.39, of which the prior takes its part
        assert found["best"] != "controls"

    def test_a_perturbation_that_doubles_the_molecules(self):
        found = self.model([[1, 2, 1], [0.5, 1, 0.5], [1, 2, 1]])
        np.testing.assert_allclose(found["mean"] + found["perturbations"]["A"], np.log(2), atol=0.1)
        np.testing.assert_allclose(found["mean"] + found["perturbations"]["B"], 0, atol=0.1)

    def test_without_a_pair_there_is_nothing_to_know(self):
        assert self.model([[1, 0, 0], [1, 0, 0]]) is None


def test_prompts_follow_the_place_in_the_stream():
    controls = Controls(np.arange(12.0).reshape(2, 6, 1, 1), np.arange(12.0).reshape(2, 6))
    sources = np.arange(8).reshape(2, 4) % 6
    prompts = Prompts(controls, sources, 1, np.array([[[1.0], [2.0]]]), np.array([1, 0]))
    first = prompts.batch(np.array([0, 1]), None)
    assert first["source_latents"].flatten().tolist() == [0, 4]
    assert first["effect"].flatten().tolist() == [2, 1]
    many = [prompts.batch(np.array([0]), np.array([place]))["source_latents"].item() for place in range(200)]
    assert set(many) == {0, 1, 2, 3, 6, 7, 8, 9}  # every draw at every depth
    whole = prompts.batch(np.zeros(200, dtype=int), np.arange(200))["source_latents"].flatten().tolist()
    assert whole == many


@pytest.fixture(scope="module")
def prior(toy_screen, data, tokenizer, folder):
    return toy_screen.fit(data, tokenizer, folder / "prior")


@pytest.mark.parametrize("space", ["latents", "pca"])
def test_held_out_cells_teach_nothing(toy_screen, data, tokenizer, tmp_path, space):
    def poison(cells):
        rows = (
            (cells.obs["cell_type"] == "type_A") & (cells.obs["perturbation"] == toy_screen.held_out(cells))
        ).to_numpy()
        counts = cells.X.toarray()
        counts[rows] = 1 + 7 * counts[rows][:, ::-1]
        return ad.AnnData(counts, cells.obs, cells.var)

    poisoned = toy_screen.screen(tmp_path, poison)
    assert DatasetInfo.load(poisoned).n_cells["test"] == DatasetInfo.load(data).n_cells["test"] > 0
    first = toy_screen.fit(data, tokenizer, tmp_path / "first", coupling_space=space)
    again = toy_screen.fit(
        poisoned, toy_screen.tokenize(poisoned, tmp_path / "tokenizer"), tmp_path / "again", coupling_space=space
    )
    one, two = (load_file(run / "model.safetensors") for run in (first, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resumes_exactly(toy_screen, data, tokenizer, prior, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*args, **kwargs):
        raise Stopped

    monkeypatch.setattr("evae.training.from_codes.save_with_processor", stop)
    with pytest.raises(Stopped):
        toy_screen.fit(data, tokenizer, tmp_path / "prior")
    monkeypatch.undo()
    shutil.rmtree(sorted((tmp_path / "prior" / "checkpoints").glob("step*"))[-1])
    resumed = toy_screen.fit(data, tokenizer, tmp_path / "prior", resume=True)
    one, two = (load_file(run / "model.safetensors") for run in (prior, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_predicts_from_source_cells(toy_screen, data, prior):
    pipe = evae.pipeline(prior, device="cpu")
    cells = simulate_perturb_seq(n_cells=400, n_genes=40, n_cell_types=3, n_perturbations=3, n_without_effect=0)
    controls = cells[cells.obs["perturbation"] == "control"].copy()
    options = {"progress": False, "library_size": "controls"}
    predicted = pipe.predict(controls, toy_screen.held_out(cells), "type_A", n_cells=100, **options)
    of_source = controls[predicted.obs["source"]]
    np.testing.assert_array_equal(predicted.obs["library_size"], np.asarray(of_source.X.sum(1)).ravel())
    assert (of_source.obs["cell_type"] == "type_A").all()
    again = pipe.predict(controls, toy_screen.held_out(cells), "type_A", n_cells=100, batch_size=7, **options)
    assert (predicted.X != again.X).nnz == 0
    controls.obs["cell_type"] = "never seen"
    new = pipe.predict(controls, toy_screen.held_out(cells), n_cells=9, progress=False)
    assert (new.obs["support"] == "unseen").all()
    assert new.X.sum() > 0


@pytest.mark.parametrize("kind", ["evae_mdlm", "evae_flow"])
@pytest.mark.parametrize("sources", [1, 3])
def test_the_other_priors(toy_screen, data, tokenizer, folder, tmp_path, kind, sources):
    tokens = (
        tokenizer if kind == "evae_mdlm" else toy_screen.tokenize(data, tmp_path / "tokenizer", quantizer="gaussian")
    )
    run = toy_screen.fit(
        data, tokens, tmp_path / "prior", toy_screen.PRIOR | {"source_cells": sources}, model_type=kind
    )
    controls, name = controls_of(folder), toy_screen.held_out(ad.read_h5ad(folder / "cells.h5ad"))
    pipe = evae.pipeline(run, device="cpu")
    assert getattr(pipe.model.config, "start_from", "source") == "source"  # of a flow
    predicted = pipe.predict(controls, name, "type_A", n_cells=20, progress=False)
    assert predicted.X.sum() > 0
    sizes, commit = push_run(run, "me/model", dry_run=True)  # which draws cells, of a flow from controls
    assert commit is None
    assert dict(sizes)["model.safetensors"] > 0


def controls_of(folder):
    cells = ad.read_h5ad(folder / "cells.h5ad")
    return cells[cells.obs["perturbation"] == "control"].copy()


def test_counts_have_no_latents_to_read(toy_screen, data, tmp_path):
    with pytest.raises(EvaeError, match=r"train a tokenizer, or set model\.source_cells=0"):
        toy_screen.fit(data, "counts", tmp_path / "prior")


def test_a_prior_is_looked_at_before_its_tokenizer_is_finished(toy_screen, data, tokenizer, tmp_path):
    """As when the demo goes on after a stop: the folder of the tokenizer holds a run, but no model yet."""
    unfinished = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (unfinished / file).unlink()
    settings = {"dataset": str(data), "tokenizer": str(unfinished), "output_dir": str(tmp_path / "prior")}
    checked = dry_run(PriorSettings(**settings, model=toy_screen.PRIOR, **toy_screen.SHORT))
    assert checked["model"]["source_cells"] == 1
    assert not (tmp_path / "prior").exists()
