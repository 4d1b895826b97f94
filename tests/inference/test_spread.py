"""The spread of predicted cells comes from one draw of their counts, the mean of each pair from another."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import evae
from evae.inference.spread import PairMeans, rate_sums
from evae.inference.totals import by_pair, mean_rates
from evae.models.randomness_evae import CellStreams

QUIET = {"effect_transfer": 0, "progress": False}


@pytest.fixture(scope="module")
def pipe():
    return evae.pipeline("example", device="cpu")


@pytest.fixture
def draws(pipe, monkeypatch):
    """What the prior drew, one entry a batch: a pair of draws, or one where a second was not asked for."""
    found, sample = [], pipe.model.sample_cells
    monkeypatch.setattr(pipe.model, "sample_cells", lambda **asked: (found.append(sample(**asked)), found[-1])[1])
    return found


def test_cells_are_the_second_draw_with_the_mean_of_the_first(pipe, draws):
    cells = pipe.predict(evae.example_controls(), ["STAT1", "JAK2"], n_cells=60, batch_size=50, **QUIET)
    first, second = (sp.csr_matrix(torch.cat([pair[which] for pair in draws]).numpy()) for which in (0, 1))
    for name in ("STAT1", "JAK2"):
        rows = (cells.obs["perturbation"] == name).to_numpy()
        wanted, found, drawn = (mean_rates(sp.csr_matrix(X[rows])) for X in (first, cells.X, second))
        many = wanted > 20
        off, before = (np.abs(rates[many] / wanted[many] - 1).mean() for rates in (found, drawn))
        assert off < before / 3
        assert cells.X[rows].sum() == second[rows].sum()
    same = cells.X.multiply(second).sum() / np.sqrt(cells.X.power(2).sum() * second.power(2).sum())
    assert same > 0.99
    again = pipe.predict(evae.example_controls(), ["STAT1", "JAK2"], n_cells=60, batch_size=7, **QUIET)
    assert (again.X != cells.X).nnz == 0


def test_few_cells_and_counterfactual_ones_are_the_first_draw(pipe, draws):
    few = pipe.predict(evae.example_controls(), "STAT1", n_cells=19, **QUIET)
    np.testing.assert_array_equal(few.X.toarray(), draws[0][0].numpy())
    assert (draws[0][0] != draws[0][1]).any()
    controls = evae.example_controls()
    draws.clear()
    changed = pipe.counterfactual(controls, "STAT1", progress=False)
    np.testing.assert_array_equal(changed.X.toarray(), torch.cat(draws).numpy())


def test_independent_molecules_vary_less_together_and_as_much_gene_by_gene(pipe):
    """The codes hold noise of the cells' own molecules, which genes drawn one by one would add again."""
    controls = evae.example_controls()
    counts = torch.from_numpy(controls[:, pipe.processor.genes].X.toarray()).float()
    tokenizer, size = pipe.model.tokenizer, counts.sum(1)
    with torch.inference_mode():
        codes = tokenizer.encode(counts)
        drawn = [
            tokenizer.sample_counts(codes, size, CellStreams(seed, range(len(counts))), independent=independent)
            for independent in (False, True)
            for seed in range(4)
        ]
    logs = [torch.log1p(cells / cells.sum(1, keepdim=True) * 1e4).numpy() for cells in (counts, *drawn)]
    axes = np.linalg.svd(logs[0] - logs[0].mean(0), full_matrices=False)[2][:30]
    together = np.array([((cells - cells.mean(0)) @ axes.T).var(0).sum() for cells in logs])
    alone = np.array([cells.var(0).sum() for cells in logs])
    assert together[1:5].min() > 1.02 * together[5:].max()
    np.testing.assert_allclose(alone[5:], alone[1:5].mean(), rtol=0.015)


def test_pairs_are_numbered_as_they_are_changed():
    kinds = pd.Categorical(["B", "A", "B", "A"] * 15 + ["A"] * 5, categories=["A", "B", "unused"])
    names = pd.Categorical(["x", "x", "x", "y"] * 15 + ["z"] * 5, categories=["z", "y", "x"])
    obs = pd.DataFrame({"cell_type": kinds, "perturbation": names})
    config = type("Tokenizer", (), {"config": type("Config", (), {"count_splitting": True})})
    means = PairMeans.of(type("Prior", (), {"tokenizer": config}), obs)
    counts = torch.from_numpy(np.random.default_rng(0).poisson(3.0, (65, 7))).float()
    for start in range(0, 65, 9):
        rows = slice(start, start + 9)
        means.add(rate_sums(counts[rows], means.pairs[rows]))
    found = means.means()
    own = sp.csr_matrix(counts.numpy())
    seen = []

    def change(number, pair, cells):
        seen.append(pair)
        if cells.shape[0] < 20:
            assert number not in found
        else:
            np.testing.assert_allclose(found[number], mean_rates(cells))
        return cells

    assert (by_pair(own, obs, change) != own).nnz == 0
    assert seen == [("B", "x"), ("A", "x"), ("A", "y"), ("A", "z")]
    plain = type("Prior", (), {"tokenizer": None})
    assert PairMeans.of(plain, obs) is None
