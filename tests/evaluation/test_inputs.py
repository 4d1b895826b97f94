"""Any AnnData in: scales recognised, labels and genes aligned, bad input named."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation.comparison import compare, group_rows
from evae.evaluation.inputs import log1p_cp10k, mean_of, open_source
from evae.models.contract_evae import EvaeError

from .conftest import make_screen


def read(adata, **keys):
    source = open_source(adata, "the cells", "perturbation", keys.pop("cell_type_key", "cell_type"))
    return source.cells(source.genes)


def expected_log1p(counts):
    counts = np.asarray(counts, dtype=float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_log1p_cp10k_by_hand(real):
    np.testing.assert_allclose(read(real).matrix.toarray(), expected_log1p(real.X.toarray()), rtol=1e-6)


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array", "csc_matrix", "dense", "int32", "int64", "float64"])
def test_every_storage_gives_the_same_cells(real, kind):
    other = real.copy()
    if kind == "dense":
        other.X = real.X.toarray()
    elif kind.startswith("cs"):
        other.X = getattr(sp, kind)(real.X)
    else:
        other.X = real.X.astype(kind)
    before = other.X.copy()
    cells = read(other)
    assert cells.scale == "raw counts"
    assert cells.digest() == read(real).digest()
    difference = before - other.X
    assert abs(difference).max() == 0  # the input was not changed
    assert before.dtype == other.X.dtype


def test_log1p_input_is_recognised_and_brought_to_the_same_values(real):
    logged = real.copy()
    logged.X = sp.csr_matrix(np.log1p(real.X.toarray() / real.X.sum(axis=1).A1[:, None] * 3_000))
    cells = read(logged)
    assert cells.scale == "log1p"
    np.testing.assert_allclose(cells.matrix.toarray(), read(real).matrix.toarray(), rtol=1e-5)


def test_files_in_chunks_give_the_same_cells(real, tmp_path, monkeypatch):
    monkeypatch.setattr("evae.evaluation.inputs.CHUNK_ROWS", 7)
    real.write_h5ad(tmp_path / "cells.h5ad")
    assert read(tmp_path / "cells.h5ad").digest() == read(real).digest()
    dense = real.copy()
    dense.X = real.X.toarray()
    dense.write_h5ad(tmp_path / "dense.h5ad")
    assert read(str(tmp_path / "dense.h5ad")).digest() == read(real).digest()


def test_views_and_explicit_zeros(real):
    assert read(real[::2]).digest() == read(real[::2].copy()).digest()
    stored = real.copy()
    stored.X.data[:5] = 0
    assert read(stored).matrix.nnz == real.X.nnz - 5


def test_empty_cells_stay_empty_and_are_counted(real):
    empty = real.copy()
    empty.X = sp.csr_matrix(real.X.multiply((np.arange(real.n_obs) > 2)[:, None]))
    cells = read(empty)
    assert cells.n_empty == 3
    assert np.isfinite(cells.matrix.data).all()


def break_values(value, where=0):
    def change(adata):
        adata.X = adata.X.copy()
        adata.X.data[where] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_values(np.nan), "1 cells hold NaN"),
        (break_values(np.inf), "NaN or infinite"),
        (break_values(-1.0), "negative values"),
        (break_values(50.5), "neither raw counts nor log1p"),
        (lambda a: setattr(a, "var_names", ["twice"] * a.n_vars), "stand more than once"),
        (lambda a: a.obs.pop("perturbation"), "no column 'perturbation'"),
        (lambda a: a.obs.pop("cell_type"), "no column 'cell_type'"),
        (lambda a: a.obs.__setitem__("cell_type", [None] * a.n_obs), "have no 'cell_type'"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_input_is_named(real, change, message):
    broken = real.copy()
    change(broken)
    with pytest.raises(EvaeError, match=message) as caught:
        read(broken)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(EvaeError, match="no such file"):
        read(tmp_path / "nowhere.h5ad")
    (tmp_path / "broken.h5ad").write_text("not hdf5")
    with pytest.raises(EvaeError, match="cannot be read as h5ad"):
        read(tmp_path / "broken.h5ad")
    with pytest.raises(EvaeError, match="no cells in X"):
        read(ad.AnnData(sp.csr_matrix((0, 3), dtype=np.float32)))


def test_without_a_cell_type_column_all_cells_are_one_type(real):
    assert set(read(real, cell_type_key=None).cell_type) == {"all"}


def test_other_gene_order_is_put_right(screen, real, perfect):
    shuffled = perfect[:, np.random.default_rng(0).permutation(perfect.n_vars)].copy()
    expected, found = (compare(p, real, screen) for p in (perfect, shuffled))
    assert found.predicted.digest() == expected.predicted.digest()
    assert any("put into the order" in note for note in found.notes)


def test_missing_genes_are_named(screen, real, perfect):
    with pytest.raises(EvaeError, match=r"lacks 2 of the 60 genes .*G58, G59"):
        compare(perfect[:, :58].copy(), real, screen)


def test_extra_genes_do_not_count(screen, real, perfect):
    extra = ad.concat([perfect, make_extra(perfect)], axis=1)
    extra.obs = perfect.obs
    found = compare(extra, real, screen)
    assert found.predicted.digest() == compare(perfect, real, screen).predicted.digest()


def make_extra(cells):
    extra = ad.AnnData(sp.csr_matrix(np.full((cells.n_obs, 2), 7.0, dtype=np.float32)))
    extra.obs_names, extra.var_names = cells.obs_names, ["X1", "X2"]
    return extra


def test_missing_predictions_are_named(screen, real, perfect):
    with pytest.raises(EvaeError, match=r"lack 1 of the 3 perturbations to evaluate \(G1 in B\)"):
        compare(perfect[perfect.obs.perturbation != "G1"].copy(), real, screen)


def test_other_labels_are_left_out_and_said(screen, real):
    predicted = make_screen(cell_types=("A", "B"), seed=1)
    found = compare(predicted, real, screen)
    assert set(found.predicted.perturbation) == {"G0", "G1", "G2"}
    assert set(found.predicted.cell_type) == {"B"}
    assert any("5 predicted pairs have no real cells" in note for note in found.notes)
    assert any("real controls stand on both sides" in note for note in found.notes)


def test_controls_come_from_where_they_are(screen, real, perfect):
    controls = screen[(screen.obs.perturbation == "control") & (screen.obs.cell_type == "B")].copy()
    with_controls = ad.concat([real, controls])
    digests = {
        compare(perfect, real, screen).controls.digest(),
        compare(perfect, real, controls=controls).controls.digest(),
        compare(perfect, with_controls).controls.digest(),
    }
    assert len(digests) == 1
    with pytest.raises(EvaeError, match="no 'control' cells of every evaluated cell type"):
        compare(perfect, real)
    with pytest.raises(EvaeError, match="hold no 'control' cells of B"):
        compare(perfect, real, controls=screen[screen.obs.cell_type == "A"].copy())
    with pytest.raises(EvaeError, match="hold no perturbed cells"):
        compare(perfect, controls)


def test_held_out_cells_never_count_as_training(screen, real, perfect):
    leaky = ad.concat([screen, real])
    clean, leaked = compare(perfect, real, screen).training, compare(perfect, real, leaky).training
    assert clean is not None
    assert leaked is not None
    assert clean.counts == leaked.counts
    np.testing.assert_array_equal(clean.means[("A", "G0")], leaked.means[("A", "G0")])
    assert ("B", "G0") not in leaked.means
    with pytest.raises(EvaeError, match="give the training split"):
        compare(perfect, real, real, controls=screen)


def test_training_means_do_not_depend_on_chunks(screen, real, perfect, monkeypatch):
    whole = compare(perfect, real, screen).training
    monkeypatch.setattr("evae.evaluation.inputs.CHUNK_ROWS", 11)
    parts = compare(perfect, real, screen).training
    for pair, mean in whole.means.items():
        np.testing.assert_allclose(parts.means[pair], mean, atol=1e-12)
    rows = (screen.obs.cell_type == "A") & (screen.obs.perturbation == "G1")
    expected = expected_log1p(screen[rows].X.toarray()).mean(axis=0)
    np.testing.assert_allclose(whole.means[("A", "G1")], expected, atol=1e-5)
    assert whole.reference.digest() == parts.reference.digest()


def test_mean_is_summed_in_double():
    matrix = sp.csr_matrix(np.full((200_000, 1), 0.1, dtype=np.float32))
    assert mean_of(matrix)[0] == pytest.approx(float(np.float32(0.1)), abs=1e-12)


def test_group_rows():
    types, names = np.array(["b", "a", "b", "b"], object), np.array(["x", "x", "y", "x"], object)
    found = {pair: rows.tolist() for pair, rows in group_rows(types, names).items()}
    assert found == {("a", "x"): [1], ("b", "x"): [0, 3], ("b", "y"): [2]}


def test_columns_are_chosen_before_the_total():
    matrix = sp.csr_matrix(np.array([[1.0, 1.0, 8.0]]))
    found = log1p_cp10k(matrix, "raw counts", np.array([1, 0]))
    np.testing.assert_allclose(np.expm1(found.toarray()), [[5000, 5000]], rtol=1e-5)
