"""Predictions that start from the user's control cells: counterfactuals, known effects, library sizes."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.inference.effects import shift_of_latents
from evae.models.coders_evae import to_dense
from evae.models.contract_evae import EvaeError
from evae.training.prior import train_prior
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

TOKENIZER = {"encoder": "mlp", "decoder": "mlp", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TOKENIZER |= {"n_latents": 4, "encoder_layers": 1, "decoder_layers": 1, "fsq_levels": [5, 5]}
TOKENIZER |= {"standardize_latents": True, "condition_on_library": True}
PRIOR = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
PRIOR |= {"source_cells": 1, "condition_on_effect": True}
SHORT = {"max_steps": 30, "batch_size": 64, "warmup_steps": 2, "eval_every": 30, "log_every": 10, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def cells():
    return simulate_perturb_seq(n_cells=500, n_genes=40, n_cell_types=2, n_perturbations=3, n_without_effect=0)


@pytest.fixture(scope="module")
def controls(cells):
    return cells[cells.obs["perturbation"] == "control"].copy()


@pytest.fixture(scope="module")
def pipe(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cells.write_h5ad(folder / "cells.h5ad")
    labels = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    prepare_dataset(folder / "cells.h5ad", folder / "data", progress=False, **labels)
    common = {"dataset": str(folder / "data"), **SHORT}
    tokenizer = train_tokenizer(TokenizerSettings(output_dir=str(folder / "tokenizer"), model=TOKENIZER, **common))
    settings = PriorSettings(tokenizer=str(tokenizer), output_dir=str(folder / "prior"), model=PRIOR, **common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evae.training.sampling_defaults.FEWEST_CELLS", 1)  # of these few validation cells
        return evae.pipeline(train_prior(settings), device="cpu")


def test_the_checkpoint_keeps_what_its_guidance_was_chosen_by(pipe):
    config = pipe.model.config
    assert config.guidance_curve[f"{config.guidance_scale:g}"] > 0
    assert list(config.guidance_curve) == ["1", "1.25", "1.5", "2"]


class TestCounterfactual:
    def test_the_same_cells_in_the_same_order(self, pipe, controls):
        name = pipe.processor.perturbations[-1]
        changed = pipe.counterfactual(controls, name, library_size="controls", guidance_scale=1.0, progress=False)
        assert changed.obs_names.tolist() == controls.obs_names.tolist() == changed.obs["source"].tolist()
        assert (changed.obs["cell_type"].astype(str) == controls.obs["cell_type"].astype(str).to_numpy()).all()
        np.testing.assert_array_equal(changed.obs["library_size"], np.asarray(controls.X.sum(1)).ravel())
        assert set(changed.obs["perturbation"]) == {name}
        assert changed.uns["evae"]["guidance_scale"] == 1
        strong = pipe.counterfactual(controls, name, guidance_scale=3.0, progress=False)
        assert strong.uns["evae"]["guidance_scale"] == 3

    def test_each_cell_is_its_own_source(self, pipe, controls):
        """Cells that are twins in their counts, with twins' random numbers, differ only by what the source says."""
        name, some = pipe.processor.perturbations[-1], controls[:40].copy()
        plain = pipe.counterfactual(some, name, progress=False, library_size="controls")
        swapped = some.copy()
        counts = swapped.X.toarray()
        counts[0] = counts[1]
        swapped.X = counts
        other = pipe.counterfactual(swapped, name, progress=False, library_size="controls")
        differs = np.flatnonzero((plain.X != other.X).toarray().any(1))
        assert differs.tolist() == [0]

    def test_one_perturbation_only(self, pipe, controls):
        with pytest.raises(EvaeError, match="one perturbation"):
            pipe.counterfactual(controls, pipe.processor.perturbations[-2:], progress=False)
        with pytest.raises(EvaeError, match="leave n_cells out"):
            pipe.counterfactual(controls, pipe.processor.perturbations[-1], n_cells=3, progress=False)
        with pytest.raises(EvaeError, match="no sampling option 'library_sise'"):
            pipe.counterfactual(controls, pipe.processor.perturbations[-1], library_sise="controls", progress=False)


class TestEffects:
    def table(self, pipe, name, fold):
        genes = pipe.processor.genes
        return pd.DataFrame({name: np.full(len(genes), 0.0)}, index=genes).assign(
            **{name: [fold if i < 5 else 0.0 for i in range(len(genes))]}
        )

    def test_an_unseen_perturbation_with_its_effect(self, pipe, controls, tmp_path):
        table = self.table(pipe, "NEW", -4.0)
        with pytest.raises(EvaeError, match="NEW"):
            pipe.predict(controls, "NEW", progress=False)
        options = {"progress": False, "library_size": "controls"}
        predicted = pipe.predict(controls, "NEW", effects=table, **options)
        assert (predicted.obs["support"] == "unseen").all()
        other = pipe.predict(controls, "NEW", effects=-table, **options)
        assert (predicted.X != other.X).nnz > 0
        table.T.to_csv(tmp_path / "effects.csv")  # perturbations by genes, as a file
        read = pipe.predict(controls, "NEW", effects=tmp_path / "effects.csv", **options)
        assert (predicted.X != read.X).nnz == 0

    def test_the_shift_of_the_latents_follows_the_folds(self, pipe, controls):
        batch = pipe.processor(controls)
        cells = to_dense(batch["counts"], batch["gene_ids"], len(pipe.processor.genes))
        before = torch.from_numpy(pipe.embed(controls.copy(), progress=False).obsm["X_evae"]).mean(0)
        none = shift_of_latents(pipe.model.tokenizer, cells, before, np.zeros(40), 0)
        folds = np.zeros(40)
        folds[:10] = 2
        some = shift_of_latents(pipe.model.tokenizer, cells, before, folds, 0)
        assert none.abs().max() < 0.05
        assert some.abs().max() > 0.2

    def test_effects_told_to_a_prior_of_few_perturbations_are_doubted(self, pipe, controls, monkeypatch):
        known = pipe.processor.perturbations[-1]
        options = {"effects": self.table(pipe, known, 2.0), "progress": False}
        doubt = r"the effects of 3 perturbations, too few"
        with pytest.warns(UserWarning, match=doubt):
            pipe.predict(controls, known, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", doubt)
            pipe.predict(controls, known, match_effects=True, **options)  # known ones are not told then
            pipe.predict(controls, pipe.processor.perturbations[-2], **options)
            monkeypatch.setattr("evae.inference.prediction.FEW_EFFECTS", 3)
            pipe.predict(controls, known, **options)

    def test_matched_cells_have_the_fold_changes_of_the_table(self, pipe, controls):
        """Of a perturbation that training knows, and of a new one; for each cell type over its own controls."""
        known = pipe.processor.perturbations[-1]
        table = pd.concat([self.table(pipe, known, 2.0), self.table(pipe, "NEW", -2.0)], axis=1)
        predicted = pipe.predict(controls, [known, "NEW"], effects=table, match_effects=True, progress=False)
        report = predicted.uns["evae"]["matched_effects"].set_index(["cell_type", "perturbation"])
        for (kind, name), rows in predicted.obs.groupby(["cell_type", "perturbation"], observed=True).indices.items():
            before = np.asarray(controls[controls.obs["cell_type"] == kind, predicted.var_names].X.sum(0)).ravel()
            after = np.asarray(predicted.X[rows].sum(0)).ravel()
            plenty = (before > 50) & (after > 50)
            found = np.log2(after / after.sum() / before * before.sum())[plenty]
            asked = table[name].to_numpy()[plenty] + report.loc[(kind, name), "offset"]
            np.testing.assert_allclose(found, asked, atol=0.05)
        assert report["error_as_drawn"].min() > 0.3 > 0.05 > report["error"].max()
        plain = pipe.predict(controls, known, progress=False)
        changed = pipe.counterfactual(controls, known, effects=table, match_effects=True, progress=False)
        assert changed.obs_names.tolist() == controls.obs_names.tolist()
        assert plain.n_obs == changed.n_obs

    def test_only_new_perturbations_are_told_what_the_cells_are_to_follow(self, pipe, controls, monkeypatch):
        known = pipe.processor.perturbations[-1]
        table = pd.concat([self.table(pipe, known, 2.0), self.table(pipe, "NEW", -2.0)], axis=1)
        plain = (
            pipe.predict(controls, known, effect_transfer=0, progress=False),
            pipe.predict(controls, "NEW", effects=table, progress=False),
        )
        monkeypatch.setattr("evae.inference.prediction.match_effects", lambda counts, *_: (counts, None))
        for name, other in zip((known, "NEW"), plain, strict=True):
            drawn = pipe.predict(controls, name, effects=table, match_effects=True, progress=False)
            assert (drawn.X != other.X).nnz == 0

    def test_matching_needs_the_effects_of_every_perturbation(self, pipe, controls):
        known = pipe.processor.perturbations[-1]
        with pytest.raises(EvaeError, match="give them as effects"):
            pipe.predict(controls, known, match_effects=True, progress=False)
        with pytest.raises(EvaeError, match=f"the effects lack '{known}'"):
            pipe.predict(controls, known, effects=self.table(pipe, "NEW", 1.0), match_effects=True, progress=False)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.rename(index=lambda g: f"x{g}"), "no gene of the model's panel"),
            (lambda t: t * 100, "log2 fold changes"),
            (lambda t: pd.concat([t, t], axis=1), "twice"),
        ],
    )
    def test_a_wrong_table_is_refused(self, pipe, controls, change, message):
        with pytest.raises(EvaeError, match=message):
            pipe.predict(controls, "NEW", effects=change(self.table(pipe, "NEW", 1.0)), progress=False)

    def test_a_file_that_is_not_there(self, pipe, controls, tmp_path):
        with pytest.raises(EvaeError, match="do not exist"):
            pipe.predict(controls, "NEW", effects=tmp_path / "none.csv", progress=False)

    def test_effects_need_controls(self, pipe):
        with pytest.raises(EvaeError, match="give controls"):
            pipe.predict(None, "NEW", "type_A", 3, effects=self.table(pipe, "NEW", 1.0), progress=False)


def test_a_perturbation_written_with_the_control_is_the_same(pipe, controls):
    name = pipe.processor.perturbations[-1]
    one, other = (pipe.predict(controls, n, progress=False) for n in (name, f"{name}+control"))
    assert (one.X != other.X).nnz == 0
    assert set(other.obs["support"]) == {"seen together"}


class TestLibrarySizes:
    def thinned(self, controls, share):
        counts = np.random.default_rng(0).binomial(controls.X.toarray().astype(int), share)
        kept = counts.sum(1) > 0
        return ad.AnnData(counts[kept].astype(np.float32), controls.obs[kept], controls.var)

    def predict(self, pipe, controls, how, **options):
        return pipe.predict(controls, pipe.processor.perturbations[-1], library_size=how, progress=False, **options)

    def test_of_the_controls_and_given(self, pipe, controls):
        copied = self.predict(pipe, controls, "controls")
        assert sorted(copied.obs["library_size"]) == sorted(np.asarray(controls.X.sum(1)).ravel())
        assert copied.uns["evae"]["library_size_source"] == "controls"
        given = self.predict(pipe, controls, np.full(controls.n_obs, 77))
        assert set(given.obs["library_size"]) == {77}

    def test_controls_shallower_than_all_training_cells_do_not_pull_the_prediction_down(self, pipe, controls):
        shallow = self.thinned(controls, 0.2)
        with pytest.warns(UserWarning, match="choose with library_size"):
            predicted = self.predict(pipe, shallow, "predicted")
        usual = np.median(self.predict(pipe, controls, "predicted").obs["library_size"])
        assert np.median(predicted.obs["library_size"]) > 0.7 * usual
        medians = predicted.uns["evae"]["library_size_median"]
        assert medians["predicted"] > 1.5 * medians["controls"]

    @pytest.mark.parametrize("how", ["deep", np.zeros(3), [-1.0]])
    def test_anything_else_is_refused(self, pipe, controls, how):
        with pytest.raises(EvaeError, match="library_size"):
            self.predict(pipe, controls, how)

    def test_without_controls(self, pipe):
        predicted = pipe.predict(None, pipe.processor.perturbations[-1], "type_A", 5, progress=False)
        assert predicted.uns["evae"]["library_size_source"] == "training cells"
        with pytest.raises(EvaeError, match="needs controls"):
            pipe.predict(None, pipe.processor.perturbations[-1], "type_A", 5, library_size="predicted", progress=False)


def test_a_prior_that_reads_no_controls_says_so(pipe, controls, monkeypatch):
    monkeypatch.setattr(pipe.model.config, "source_cells", 0)
    monkeypatch.setattr(pipe.model.config, "condition_on_effect", False)
    with pytest.raises(EvaeError, match="reads no source cells"):
        pipe.counterfactual(controls, "any", progress=False)
    with pytest.raises(EvaeError, match="takes no effects"):
        pipe.predict(controls, "any", effects=pd.DataFrame(), progress=False)
    name = pipe.processor.perturbations[-1]
    table = pd.DataFrame({name: np.linspace(-1, 1, len(pipe.processor.genes))}, index=pipe.processor.genes)
    matched = pipe.predict(controls, name, effects=table, match_effects=True, progress=False)
    assert matched.uns["evae"]["matched_effects"]["error"].max() < 0.05
