import numpy as np
import pytest

from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.models.contract_evae import EvaeError


def _effects(adata, control: str, perturbation: str) -> np.ndarray:
    """Log fold change of the mean share of every gene, (genes,)."""
    shares = []
    for name in (perturbation, control):
        counts = adata.X[(adata.obs["perturbation"] == name).to_numpy()]
        shares.append((np.asarray(counts.sum(0)).ravel() + 1) / counts.sum())
    return np.log(shares[0] / shares[1])


def test_same_seed_same_cells():
    first, second = (simulate_perturb_seq(n_cells=300, n_genes=50, n_perturbations=4, seed=7) for _ in range(2))
    other = simulate_perturb_seq(n_cells=300, n_genes=50, n_perturbations=4, seed=8)
    assert (first.X != second.X).nnz == 0
    assert first.obs.equals(second.obs)
    assert (first.X != other.X).nnz > 0


def test_counts_look_like_single_cells():
    adata = simulate_perturb_seq()
    assert adata.shape == (8_000, 400)
    assert adata.X.dtype == np.int32
    assert adata.X.data.min() > 0
    assert 0.8 <= 1 - adata.X.nnz / np.prod(adata.shape) <= 0.9
    log_sizes = np.log(np.asarray(adata.X.sum(1)).ravel())
    assert 0.3 < log_sizes.std() < 0.5
    assert adata.var_names[11] == "GENE0012"
    assert list(adata.obs["cell_type"].cat.categories) == ["type_A", "type_B", "type_C"]
    names = list(adata.obs["perturbation"].cat.categories)
    assert names[0] == "control"
    assert len(names) == 13
    assert all(n[3:] in adata.var_names for n in names[1:])


def test_counts_are_overdispersed():
    """A Poisson gene has variance = mean; here it is mean + mean^2 / theta."""
    adata = simulate_perturb_seq(
        n_cells=3_000, n_cell_types=1, n_perturbations=0, n_without_effect=0, library_spread=0.0
    )
    counts = adata.X.toarray().astype(float)
    high = counts.mean(0) > 1
    assert (counts.var(0)[high] > 1.2 * counts.mean(0)[high]).mean() > 0.9


def test_the_stored_truth_is_what_the_counts_show():
    adata = simulate_perturb_seq(n_cells=30_000, n_genes=120, n_cell_types=1, n_perturbations=5, modulation=0.0, seed=1)
    truth = adata.uns["simulation"]
    assert truth["has_effect"].sum() == 3  # five less the two without effect
    expressed = np.asarray(adata.X.mean(0)).ravel() > 0.1
    for p, name in enumerate(truth["perturbations"][1:], start=1):
        seen = _effects(adata, "control", name)[expressed]
        wanted = truth["log_fold_change"][p][expressed]
        if truth["has_effect"][p]:
            wanted, seen = wanted - np.median(wanted), seen - np.median(seen)  # shares are relative
            assert np.corrcoef(seen, wanted)[0, 1] > 0.95
            assert np.abs(seen - wanted).max() < 0.35
            assert _effects(adata, "control", name)[adata.var_names == name[3:]] < -1
        else:
            assert not truth["log_fold_change"][p].any()
            assert np.abs(seen).max() < 0.25


def test_cell_types_share_the_effect_and_differ_in_expression():
    adata = simulate_perturb_seq(n_cells=24_000, n_genes=120, n_cell_types=2, n_perturbations=3, n_without_effect=0)
    truth = adata.uns["simulation"]
    expressed = np.asarray(adata.X.mean(0)).ravel() > 0.2
    kinds = [adata[adata.obs["cell_type"] == t] for t in truth["cell_types"]]
    effects = [_effects(k, "control", truth["perturbations"][1])[expressed] for k in kinds]
    assert np.corrcoef(*effects)[0, 1] > 0.85
    means = [np.log(np.asarray(k.X.mean(0)).ravel()[expressed] + 0.01) for k in kinds]
    assert np.abs(means[0] - means[1]).max() > 0.7


def test_where_cells_answer_by_their_state_arithmetic_fails_and_controls_tell():
    sizes = {
        "n_cells": 9_000,
        "n_genes": 200,
        "n_cell_types": 6,
        "n_perturbations": 3,
        "n_without_effect": 0,
        "effect_size": 1.5,
    }
    plain, dependent = (simulate_perturb_seq(**sizes, seed=2, context_dependence=c) for c in (0.0, 1.0))

    def changes(adata):
        """Control means (types, genes) and mean changes (types, perturbations, genes), log1p CP10K."""
        counts = adata.X.toarray().astype(float)
        expression = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
        groups = adata.obs["cell_type"].cat.codes.to_numpy() * 4 + adata.obs["perturbation"].cat.codes.to_numpy()
        means = np.stack([expression[groups == g].mean(0) for g in range(6 * 4)]).reshape(6, 4, -1)
        return means[:, 0], means[:, 1:] - means[:, :1]

    def error(predicted, real):
        return ((predicted - real)[answers] ** 2).mean() / (real[answers] ** 2).mean()  # 1 for no change

    truth = dependent.uns["simulation"]
    answers = truth["knock_down"][1:] == 0  # the target itself goes down in every cell type
    controls, change = changes(dependent)
    markers = truth["state_loadings"] - truth["state_loadings"].mean()
    readings = (controls - controls.mean(0)) @ markers  # from controls alone
    assert (np.sign(readings) == np.sign(truth["state"])).all()
    assert (np.sign(truth["state_response"]) == np.sign(truth["state"])).all()
    for t in range(6):
        others = [u for u in range(6) if u != t]
        alike = [u for u in others if readings[u] * readings[t] > 0]
        assert error(change[others].mean(0), change[t]) > 0.95  # the additive shift is worth nothing
        assert error(change[alike].mean(0), change[t]) < 0.7
    _, shared = changes(plain)
    assert error(shared[1:].mean(0), shared[0]) < 0.7  # as it is worth something in cells that answer alike
    assert (plain.X != simulate_perturb_seq(**sizes, seed=2).X).nnz == 0


@pytest.mark.parametrize("values", [{"context_dependence": 1.5}, {"context_dependence": 0.5, "n_cell_types": 1}])
def test_context_dependence_is_checked(values):
    with pytest.raises(EvaeError, match="context_dependence must be from 0 to 1"):
        simulate_perturb_seq(n_cells=100, n_genes=50, **values)


def test_written_and_read_back(tmp_path):
    import anndata as ad

    adata = simulate_perturb_seq(n_cells=50, n_genes=30, n_perturbations=3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    truth = ad.read_h5ad(tmp_path / "a.h5ad").uns["simulation"]
    np.testing.assert_array_equal(truth["log_fold_change"], adata.uns["simulation"]["log_fold_change"])


@pytest.mark.parametrize("sizes", [{"n_perturbations": 500}, {"n_without_effect": 13}, {"n_cells": 0}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(EvaeError, match="simulate_perturb_seq needs"):
        simulate_perturb_seq(**sizes)
