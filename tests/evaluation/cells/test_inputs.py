"""Any AnnData in: scales recognised, labels and genes aligned, bad input named."""

import tracemalloc

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation.cells.comparison import compare, group_rows
from evae.evaluation.cells.inputs import open_source
from evae.evaluation.cells.normalised import StoredRows, log1p_cp10k, mean_of
from evae.evaluation.cells.training_cells import summarise_training
from evae.models.contract_evae import EvaeError

from ..conftest import make_screen


def source_of(adata, cell_type_key="cell_type"):
    return open_source(adata, "the cells", "perturbation", cell_type_key)


def read(adata, **keys):
    source = source_of(adata, **keys)
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
    assert source_of(other).scale.name == "raw counts"
    assert cells.digest() == read(real).digest()
    difference = before - other.X
    assert abs(difference).max() == 0  # the input was not changed
    assert before.dtype == other.X.dtype


def test_repeated_entries_are_summed(real, repeat_entries, tmp_path):
    again = repeat_entries(real)
    stored = again.X.copy()
    assert read(again).digest() == read(real).digest()
    assert np.array_equal(again.X.data, stored.data)  # the input was not changed
    again.write_h5ad(tmp_path / "cells.h5ad")
    assert read(tmp_path / "cells.h5ad").digest() == read(real).digest()


def test_log1p_input_is_recognised_and_brought_to_the_same_values(real):
    logged = real.copy()
    logged.X = sp.csr_matrix(np.log1p(real.X.toarray() / real.X.sum(axis=1).A1[:, None] * 3_000))
    cells = read(logged)
    assert source_of(logged).scale.name == "log1p"
    np.testing.assert_allclose(cells.matrix.toarray(), read(real).matrix.toarray(), rtol=1e-5)


def test_files_in_chunks_give_the_same_cells(real, tmp_path, monkeypatch):
    monkeypatch.setattr("evae.evaluation.cells.inputs.BLOCK_ROWS", 7)
    real.write_h5ad(tmp_path / "cells.h5ad")
    assert read(tmp_path / "cells.h5ad").digest() == read(real).digest()
    dense = real.copy()
    dense.X = real.X.toarray()
    dense.write_h5ad(tmp_path / "dense.h5ad")
    assert read(str(tmp_path / "dense.h5ad")).digest() == read(real).digest()


@pytest.mark.parametrize(
    "rows", [[4, 5, 6, 1], [3, 3, 0], [], slice(2, 9, 3), slice(None), np.arange(12) % 5 == 0], ids=str
)
def test_stored_rows_are_those_of_the_matrix(rows):
    matrix = sp.random(12, 7, 0.4, format="csr", dtype=np.float32, random_state=0)
    stored = StoredRows(7)
    stored.append(matrix[:5])
    stored.append(matrix[5:])
    found = stored[rows]
    assert stored.shape == (12, 7)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray(), matrix.toarray()[rows])


def test_no_rows_stored():
    assert StoredRows(7).shape == (0, 7)
    assert StoredRows(7)[np.arange(0)].shape == (0, 7)


def test_equal_log1p_values_stay_equal():
    """Ranks depend on ties: cells of the same counts must not come apart by the rounding of their total."""
    counts = np.random.default_rng(0).poisson(0.4, (400, 50)).astype(float)
    counts[:, 0] += 1
    for target in (10_000, 1_000_000, 34.5):  # CP10K, CPM, and what "median" may give
        scaled = counts / counts.sum(axis=1, keepdims=True) * target
        found = log1p_cp10k(np.log1p(scaled).astype(np.float32), "log1p").toarray()
        expected = log1p_cp10k(counts, "raw counts").toarray()
        np.testing.assert_allclose(found, expected, rtol=2e-6)
        for gene in range(50):
            assert len(np.unique(found[:, gene])) == len(np.unique(expected[:, gene]))


def test_memory_does_not_grow_with_the_training_cells(tmp_path, monkeypatch):
    # how many blocks threads hold at once depends on the moment; tests/common/test_threads.py bounds it
    monkeypatch.setattr("evae.evaluation.cells.inputs.in_threads", map)
    monkeypatch.setattr("evae.evaluation.cells.inputs.BLOCK_ROWS", 256)
    monkeypatch.setattr("evae.evaluation.cells.training_cells._HASHED", 256)
    monkeypatch.setattr("evae.evaluation.cells.training_cells.MAX_REFERENCE", 200)
    monkeypatch.setattr("evae.evaluation.cells.training_cells.MAX_PER_PERTURBATION", 20)
    size, peak = {}, {}
    for n in (1_000, 5_000):
        rng = np.random.default_rng(n)
        many = ad.AnnData(sp.csr_matrix(rng.poisson(1, (n, 300)).astype(np.float32)))
        many.var_names = [f"G{i}" for i in range(300)]
        many.obs["perturbation"] = [f"G{i % 4}" for i in range(n)]
        many.obs["cell_type"] = "A"
        path = tmp_path / f"{n}.h5ad"
        many.write_h5ad(path)
        size[n] = many.X.data.nbytes + many.X.indices.nbytes
        held_out, source = source_of(many[:8]), source_of(path)
        tracemalloc.start()
        summarise_training(source, held_out, ["G0", "G1", "G2"], source.genes, "control")
        source.cells(source.genes)
        peak[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[5_000] - peak[1_000] < 0.1 * (size[5_000] - size[1_000])  # labels and hashes of names


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
        (break_values(np.nan), "1 cell holds NaN"),
        (break_values(np.inf), "NaN or infinite"),
        (break_values(-1.0), "negative values"),
        (break_values(50.5), "neither raw counts nor log1p"),
        (lambda a: setattr(a, "var_names", ["twice"] * a.n_vars), "stands? more than once"),
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
    with pytest.raises(EvaeError, match="not a readable h5ad file"):
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
    with pytest.raises(EvaeError, match=r"lack 2 of the 60 genes .*G58, G59"):
        compare(perfect[:, :58].copy(), real, screen)
    other = perfect.copy()
    other.var_names = [f"ENSG{i}" for i in range(60)]
    with pytest.raises(EvaeError, match=r"no gene of the real cells .*ENSG0, ENSG1; .*G0, G1.*same kind of gene names"):
        compare(other, real, screen)


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
    other = perfect.copy()
    other.obs["cell_type"] = "BB"
    with pytest.raises(EvaeError, match=r"The cell type 'B' is not among theirs. Known are 'BB'|Did you mean 'BB'"):
        compare(other, real, screen)


def test_other_labels_are_left_out_and_said(screen, real):
    predicted = make_screen(cell_types=("A", "B"), seed=1)
    found = compare(predicted, real, screen)
    assert set(found.predicted.perturbation) == {"G0", "G1", "G2"}
    assert set(found.predicted.cell_type) == {"B"}
    assert any("left out: 5 predicted pairs without real cells" in note for note in found.notes)
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
    monkeypatch.setattr("evae.evaluation.cells.inputs.BLOCK_ROWS", 11)
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
