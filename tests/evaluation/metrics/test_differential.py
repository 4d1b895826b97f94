"""Differential expression against scipy and pdex."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from evae.evaluation.metrics import sorted_values
from evae.evaluation.metrics.differential import ControlRanks, differential_expression
from evae.evaluation.metrics.recovery import areas
from evae.evaluation.metrics.sorted_values import MOST_GROUPS
from evae.evaluation.protocols import differential as protocol
from evae.evaluation.protocols.differential import read_table, write_table
from evae.evaluation.systems.baselines import System
from evae.models.contract_evae import EvaeError

GENES = np.array([f"g{i}" for i in range(12)], dtype=object)


@pytest.fixture
def cells():
    """Log1p values with ties and zeros; a gene zero everywhere, one constant, one only in controls."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), [25, 40, 7])
    values = rng.poisson(rng.gamma(1, 1, 12), (72, 12)).astype(float)
    controls = rng.poisson(rng.gamma(1, 1.3, 12), (50, 12)).astype(float)
    values[:, 3] = controls[:, 3] = 0
    values[:, 4] = controls[:, 4] = 2
    values[:, 5] = 0
    controls[:, 5] = np.arange(50) % 2
    return np.log1p(values).astype(np.float32), groups, np.log1p(controls).astype(np.float32)


@pytest.fixture
def table(cells):
    values, groups, controls = cells
    ranks = ControlRanks(sp.csr_matrix(controls))
    return differential_expression([(["x", "y", "z"], sp.csr_matrix(values), groups)], ranks, GENES)


def scipy_p(values, controls):
    """In float64; where all values are tied scipy gives NaN, which stands for 1."""
    with np.errstate(all="ignore"):
        found = mannwhitneyu(values.astype(float), controls.astype(float), method="asymptotic", axis=0)
    return np.nan_to_num(found.pvalue, nan=1.0)


def test_p_values_and_fdr_are_scipys(cells, table):
    values, groups, controls = cells
    for i in range(3):
        expected = scipy_p(values[groups == i], controls)
        np.testing.assert_allclose(table.p_value[i], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(table.fdr[i], false_discovery_control(expected), rtol=1e-9, atol=1e-12)


def test_tables_are_pdexs(cells, table):
    pytest.importorskip("pdex", reason="pdex is in the extra eval")
    from pdex import pdex

    values, groups, controls = cells
    labels = np.concatenate([np.array(["x", "y", "z"])[groups], np.full(len(controls), "control")])
    adata = ad.AnnData(
        sp.csr_matrix(np.concatenate([values, controls]).astype(np.float64)),
        obs=pd.DataFrame({"p": labels}, index=np.arange(len(labels)).astype(str)),
        var=pd.DataFrame(index=GENES.astype(str)),
    )
    expected = pdex(adata, groupby="p", reference="control", is_log1p=True, epsilon=0.0, threads=1)
    np.testing.assert_allclose(table.p_value.ravel(), expected["p_value"].to_numpy(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(table.fdr.ravel(), expected["fdr"].to_numpy(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(table.log2_fold_change.ravel(), expected["log2_fold_change"].to_numpy(), atol=1e-9)


def test_fold_change_is_of_geometric_means(cells, table):
    values, groups, controls = cells
    values, controls = values.astype(np.float64), controls.astype(np.float64)
    expected = np.log2(np.expm1(values[groups == 1, 0].mean()) / np.expm1(controls[:, 0].mean()))
    assert table.log2_fold_change[1, 0] == pytest.approx(expected, abs=1e-9)
    assert table.log2_fold_change[1, 3] == 0  # nobody expresses it
    assert table.log2_fold_change[1, 5] == -np.inf  # only the controls do


def test_batches_do_not_change_the_table(cells, table):
    values, groups, controls = cells
    ranks = ControlRanks(sp.csr_matrix(controls))
    batches = [
        (["x"], sp.csr_matrix(values[groups == 0]), np.zeros(25, dtype=int)),
        (["y", "z"], sp.csr_matrix(values[groups > 0]), groups[groups > 0] - 1),
    ]
    split = differential_expression(batches, ranks, GENES)
    np.testing.assert_array_equal(split.p_value, table.p_value)
    np.testing.assert_array_equal(split.log2_fold_change, table.log2_fold_change)


def test_one_cell_and_csr_arrays(cells):
    values, _, controls = cells
    ranks = ControlRanks(sp.csr_matrix(controls))
    table = differential_expression([(["x"], sp.csr_matrix(values[:1]), np.zeros(1, dtype=int))], ranks, GENES)
    np.testing.assert_allclose(table.p_value[0], scipy_p(values[:1], controls), rtol=1e-9)


def test_no_controls_raise():
    with pytest.raises(EvaeError, match="needs control cells"):
        ControlRanks(sp.csr_matrix((0, 3), dtype=np.float32))


def test_stored_tables_come_back_exactly(table, tmp_path):
    write_table(table, tmp_path / "deep" / "t.safetensors")
    back = read_table(tmp_path / "deep" / "t.safetensors")
    for name in ("perturbations", "genes", "log2_fold_change", "p_value", "fdr"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize("values_at_once", [1, 40, 1 << 16])
def test_a_few_genes_at_a_time_have_the_numbers_of_all(values_at_once, monkeypatch):
    """Sparse cells with many ties, genes that nobody has at either end and between, groups of one and of no cells."""
    monkeypatch.setattr(sorted_values, "_VALUES", values_at_once)
    monkeypatch.setattr(sorted_values, "_SORTED", 8)
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 0.6, 30)
    rates[[0, 1, 14, 29]] = 0
    cells, controls = (np.log1p(rng.poisson(rates, (n, 30))).astype(np.float32) for n in (60, 45))
    cells[7] = 0
    codes = np.repeat(np.arange(4), [1, 30, 1, 28])
    ranks = ControlRanks(sp.csr_matrix(controls))
    fold, p_value = ranks.test(sp.csr_matrix(cells), codes, 4)
    for i in range(4):
        own = cells[codes == i].astype(float)
        np.testing.assert_allclose(p_value[i], scipy_p(own, controls), rtol=1e-9, atol=1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.log2(np.expm1(own.mean(axis=0)) / np.expm1(controls.astype(float).mean(axis=0)))
        np.testing.assert_allclose(fold[i], np.nan_to_num(expected, nan=0.0, neginf=-np.inf, posinf=np.inf), atol=1e-9)


def test_one_perturbation_survives_storing(cells, tmp_path):
    values, _, controls = cells
    batch = (["x"], sp.csr_matrix(values[:9]), np.zeros(9, dtype=int))
    table = differential_expression([batch], ControlRanks(sp.csr_matrix(controls)), GENES)
    write_table(table, tmp_path / "t.safetensors")
    assert read_table(tmp_path / "t.safetensors").p_value.shape == (1, len(GENES))


def test_a_perturbation_of_empty_cells_is_tested_too(cells):
    _, _, controls = cells
    empty = sp.csr_matrix((6, len(GENES)), dtype=np.float32)
    table = differential_expression(
        [(["x"], empty, np.zeros(6, dtype=int))], ControlRanks(sp.csr_matrix(controls)), GENES
    )
    np.testing.assert_allclose(table.p_value[0], scipy_p(empty.toarray(), controls), rtol=1e-9)


def test_no_batch_holds_more_perturbations_than_a_key_can_name(cells, monkeypatch):
    values = sp.csr_matrix(cells[0])
    names = [f"p{i}" for i in range(7)]
    rows = {("t", name): np.array([i]) for i, name in enumerate(names)}
    system = System("s", lambda *_: values, lambda _: values, list(rows), stored=lambda pair: values[rows[pair]])
    monkeypatch.setattr(protocol, "MOST_GROUPS", 3)
    batches = list(protocol._batches(system, "t", names, dict.fromkeys(rows, 1), seed=0))
    assert [batch for batch, _, _ in batches] == [names[:3], names[3:6], names[6:]]


def test_more_groups_than_a_key_can_name_are_refused(cells):
    values, _, controls = cells
    codes = np.zeros(len(values), dtype=int)
    with pytest.raises(EvaeError, match=f"at most {MOST_GROUPS:,} can be tested"):
        ControlRanks(sp.csr_matrix(controls)).test(sp.csr_matrix(values), codes, MOST_GROUPS + 1)


def test_halves_from_one_sort_have_the_numbers_of_tests_of_their_own(cells):
    values, groups, controls = cells
    ranks, values = ControlRanks(sp.csr_matrix(controls)), sp.csr_matrix(values)
    halves = np.arange(len(groups)) % 3
    found = ranks.test_halves(values, groups, 3, halves)
    assert len(found) == 3
    for half, tables in enumerate(found):
        own = np.ones(len(groups), dtype=bool) if half == 0 else halves == half
        for one_sort, alone in zip(tables, ranks.test(values[own], groups[own], 3), strict=True):
            np.testing.assert_array_equal(one_sort, alone)


@pytest.mark.parametrize("n_positive", [0, 1, 7, 20])
def test_areas_of_tied_scores_are_those_of_sklearn(n_positive):
    rng = np.random.default_rng(n_positive)
    positive, score = rng.permutation(20) < n_positive, rng.integers(0, 6, 20)
    found = areas(positive, score)
    if n_positive in (0, 20):
        assert np.isnan(found).all()
    else:
        np.testing.assert_allclose(found, [f(positive, score) for f in (average_precision_score, roc_auc_score)])
