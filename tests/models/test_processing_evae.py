"""The processor: tensors of cells, names to ids, library sizes, saving and loading."""

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from transformers import AutoFeatureExtractor, AutoProcessor

from evae.models import EvaeError, EvaeProcessor
from evae.models.modeling_evae import to_dense


@pytest.fixture
def matrix():
    """Raw counts (5, 30), int64."""
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(0.5, 4, size=(5, 30)))


def anndata(matrix, names=None, **var):
    adata = ad.AnnData(matrix)
    adata.var_names = [f"GENE{i}" for i in range(matrix.shape[1])] if names is None else names
    for column, values in var.items():
        adata.var[column] = values
    return adata


def dense(batch):
    return to_dense(batch["counts"], batch["gene_ids"], 30).numpy()


class TestBatch:
    def test_is_the_sparse_batch(self, processor, matrix):
        batch = processor(anndata(matrix), perturbation="JAK2", cell_type=["T cell", "B cell", *["T cell"] * 3])
        assert {k: v.dtype for k, v in batch.items()} == {
            "counts": torch.float32,
            "gene_ids": torch.int64,
            "library_size": torch.float32,
            "perturbation_ids": torch.int64,
            "cell_type_ids": torch.int64,
        }
        np.testing.assert_array_equal(dense(batch), matrix)
        np.testing.assert_array_equal(batch["library_size"].numpy(), matrix.sum(1))
        expressed = (matrix > 0).sum(1)
        places = np.arange(batch["counts"].shape[1])
        np.testing.assert_array_equal(batch["counts"].numpy() > 0, places < expressed[:, None])
        assert batch["counts"].shape[1] == -(-expressed.max() // 8) * 8
        assert batch["perturbation_ids"].tolist() == [2] * 5
        assert batch["cell_type_ids"].tolist() == [0, 1, 0, 0, 0]

    def test_model_takes_it(self, processor, tiny_tokenizer, matrix):
        batch = processor(matrix)
        counts = torch.from_numpy(matrix).float()
        model = tiny_tokenizer()
        assert torch.equal(model.encode(batch["counts"], batch["gene_ids"]), model.encode(counts))
        torch.testing.assert_close(model(**batch).loss, model(counts).loss)

    @pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.float32, np.float64])
    @pytest.mark.parametrize(
        "form",
        [
            np.asarray,
            sparse.csr_matrix,
            sparse.csc_matrix,
            sparse.coo_matrix,
            sparse.csr_array,
            sparse.csc_array,
        ],
    )
    def test_every_form_and_number(self, form, dtype, processor, matrix):
        given = form(matrix.astype(dtype))
        before = given.copy()
        np.testing.assert_array_equal(dense(processor(given)), matrix)
        if not isinstance(given, sparse.coo_matrix):
            np.testing.assert_array_equal(dense(processor(anndata(given))), matrix)
        difference = given != before
        assert not (difference.any() if isinstance(given, np.ndarray) else difference.nnz)

    def test_lists_tensors_and_views(self, processor, matrix):
        np.testing.assert_array_equal(dense(processor(matrix.tolist())), matrix)
        np.testing.assert_array_equal(dense(processor(torch.from_numpy(matrix))), matrix)
        np.testing.assert_array_equal(dense(processor(anndata(sparse.csr_matrix(matrix))[[3, 1]])), matrix[[3, 1]])

    @pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
    def test_backed(self, form, processor, matrix, tmp_path):
        anndata(form(matrix)).write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        np.testing.assert_array_equal(dense(processor(backed)), matrix)
        np.testing.assert_array_equal(dense(processor(backed[1:3])), matrix[1:3])
        backed.file.close()

    def test_duplicate_entries_are_summed_and_explicit_zeros_dropped(self, processor):
        values, columns, rows = [1, 2, 4, 0, 3], [7, 7, 2, 5, 1], [0, 0, 0, 0, 1]
        given = sparse.csr_matrix((values, columns, [0, 4, 5]), shape=(2, 30))
        batch = processor(given)
        expected = np.zeros((2, 30))
        np.add.at(expected, (rows, columns), values)
        np.testing.assert_array_equal(dense(batch), expected)
        assert (batch["counts"] > 0).sum(1).tolist() == [2, 1]
        assert given.nnz == 5  # the user's matrix is as it was

    def test_layer(self, processor, matrix):
        adata = anndata(np.log1p(matrix))
        adata.layers["counts"] = sparse.csr_matrix(matrix)
        np.testing.assert_array_equal(dense(processor(adata, layer="counts")), matrix)
        with pytest.raises(EvaeError, match="no layer 'raw'; choose counts or none"):
            processor(adata, layer="raw")


class TestSupportAndLibrarySizes:
    def test_support(self, processor):
        assert processor.support("T cell", "STAT1") == "seen together"
        assert processor.support("B cell", "STAT1") == "seen apart"
        assert processor.support("B cell", "IRF1") == "unseen"
        assert processor.support("NK cell", "STAT1") == "unseen"
        assert EvaeProcessor(genes=["A"]).support("T cell", "STAT1") == "unknown"

    def test_library_sizes_follow_the_quantiles(self, processor):
        drawn = processor.sample_library_size(20_000, np.random.default_rng(0))
        assert drawn.dtype == np.float32
        assert drawn.min() >= 10
        assert drawn.max() <= 100
        assert np.mean(drawn < 50) == pytest.approx(0.5, abs=0.02)
        assert np.quantile(drawn, 0.25) == pytest.approx(30, abs=2)
        again = processor.sample_library_size(20_000, np.random.default_rng(0))
        np.testing.assert_array_equal(drawn, again)
        with pytest.raises(EvaeError, match="give control cells"):
            EvaeProcessor(genes=["A"]).sample_library_size(3, np.random.default_rng(0))


class TestSaveAndLoad:
    def test_round_trip_by_every_name(self, processor, tiny_prior, matrix, tmp_path):
        processor.save_pretrained(tmp_path)
        tiny_prior().save_pretrained(tmp_path)
        expected = processor(matrix, perturbation="STAT1")
        for loader in (EvaeProcessor, AutoProcessor, AutoFeatureExtractor):
            loaded = loader.from_pretrained(tmp_path)
            assert type(loaded) is EvaeProcessor
            for field in (
                *("genes", "ensembl_ids", "perturbations", "cell_types", "control"),
                *("library_size_quantiles", "training_pairs", "min_coverage"),
            ):
                assert getattr(loaded, field) == getattr(processor, field), field
            found = loaded(matrix, perturbation="STAT1")
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[k], expected[k]) for k in expected)

    def test_saving_twice_gives_the_same_file(self, processor, tmp_path):
        processor.save_pretrained(tmp_path / "a")
        EvaeProcessor.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
        first, second = ((tmp_path / d / "preprocessor_config.json").read_text() for d in "ab")
        assert first == second

    def test_numpy_values_are_saved(self, tmp_path):
        EvaeProcessor(
            genes=np.array(["A", "B"]),
            perturbations=np.array(["c"], dtype=object),
            control="c",
            library_size_quantiles=np.array([1, 2.5], dtype=np.float32),
            min_coverage=np.float64(0.25),
        ).save_pretrained(tmp_path)
        loaded = EvaeProcessor.from_pretrained(tmp_path)
        assert loaded.genes == ["A", "B"]
        assert loaded.library_size_quantiles == [1.0, 2.5]
        assert loaded.min_coverage == 0.25
