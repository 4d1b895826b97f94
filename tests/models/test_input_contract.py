"""What the processor refuses, and how genes and names are matched: one clear line with the fix, for each."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from evae.models import EvaeError, EvaeProcessor
from evae.models.contract_evae import check_raw_counts, look_up, near_matches
from evae.models.modeling_evae import to_dense

GENES = [f"GENE{i}" for i in range(30)]
IDS = [f"ENSG{i:011d}" for i in range(30)]


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    return rng.poisson(2, size=(5, 30)).astype(np.float64)


def anndata(matrix, names=GENES, **var):
    adata = ad.AnnData(matrix)
    adata.var_names = list(names)
    for column, values in var.items():
        adata.var[column] = values
    return adata


def dense(batch):
    return to_dense(batch["counts"], batch["gene_ids"], 30).numpy()


def refuses(call, *words):
    """The call raises one `EvaeError` of one line that holds all words."""
    with pytest.raises(EvaeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


class TestRawCounts:
    @pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4), ["log-normalised", "raw integer counts"]),
            (lambda x: x * 1.5, ["fractional", "raw"]),
            (lambda x: x * 100 + 0.5, ["ambient-corrected", "raw"]),
            (lambda x: x - 1, ["negative", "raw counts"]),
            (lambda x: np.where(x == x.max(), np.nan, x), ["NaN or infinite", "drop"]),
            (lambda x: np.where(x == x.max(), np.inf, x), ["NaN or infinite", "drop"]),
        ],
    )
    def test_refused(self, form, change, words, processor, matrix):
        refuses(lambda: processor(form(change(matrix))), *words)
        refuses(lambda: processor(anndata(form(change(matrix)))), *words)

    def test_a_layer_is_named_and_checked(self, processor, matrix):
        adata = anndata(matrix)
        adata.layers["log"] = np.log1p(matrix)
        processor(adata)
        refuses(lambda: processor(adata, layer="log"), "layer 'log'")

    def test_cells_without_counts(self, processor, matrix):
        matrix[2] = 0
        refuses(lambda: processor(matrix), "1 cell has no counts", "drop")
        refuses(lambda: processor(sparse.csr_matrix(matrix * 0)), "5 cells have no counts", "of 5")
        stored = sparse.csr_matrix(matrix + 1)
        stored.data[stored.indptr[1] : stored.indptr[2]] = 0  # zeros that are stored are zeros all the same
        refuses(lambda: processor(stored), "1 cell has no counts")
        outside = np.hstack([matrix, np.ones((5, 1))])  # counted, but not over the panel
        refuses(lambda: processor(anndata(outside, [*GENES, "OTHER"])), "1 cell has no counts", "panel")

    def test_shapes(self, processor, matrix):
        refuses(lambda: processor(matrix[:0]), "at least one cell")
        refuses(lambda: processor(matrix[0]), "(cells, genes)")
        refuses(lambda: processor(matrix[:, :20]), "20 columns but 30 gene names", "give `genes`")
        refuses(lambda: processor(ad.AnnData(obs=anndata(matrix).obs, var=anndata(matrix).var)), "no X", "layer")
        refuses(lambda: processor(matrix.astype(str)), "raw counts")
        refuses(lambda: processor(matrix, return_tensors="np"), "use 'pt'")

    def test_boolean_and_unsigned_are_counts(self):
        check_raw_counts(np.array([True, False]))
        check_raw_counts(np.array([3, 200], dtype=np.uint8))
        check_raw_counts(np.array([]))


class TestGenes:
    def test_other_order_and_more_genes(self, processor, matrix):
        order = np.random.default_rng(1).permutation(30)
        more = np.hstack([np.full((5, 3), 9.0), matrix[:, order]])
        names = ["X", "Y", "Z", *(GENES[i] for i in order)]
        for given in (
            processor(anndata(more, names)),
            processor(anndata(sparse.csc_matrix(more), names)),
            processor(sparse.csr_matrix(more), genes=names),
        ):
            np.testing.assert_array_equal(dense(given), matrix)
            np.testing.assert_array_equal(given["library_size"].numpy(), matrix.sum(1))  # over the panel only

    @pytest.mark.parametrize("column", ["ensembl_id", "gene_ids", "feature_id"])
    def test_ensembl_ids(self, column, processor, matrix):
        order = np.random.default_rng(1).permutation(30)
        versions = [f"{IDS[i]}.{i}" for i in order]
        by_column = processor(anndata(matrix[:, order], [f"s{i}" for i in order], **{column: versions}))
        by_name = processor(anndata(matrix[:, order], versions))
        by_argument = processor(matrix[:, order], genes=[f"s{i}" for i in order], ensembl_ids=versions)
        for given in (by_column, by_name, by_argument):
            np.testing.assert_array_equal(dense(given), matrix)

    def test_coverage(self, processor, matrix):
        assert processor.coverage(GENES[:12]) == pytest.approx(0.4)
        assert processor.coverage(IDS) == 1
        batch = processor(anndata(matrix[:, :15], GENES[:15]))  # exactly the threshold
        np.testing.assert_array_equal(dense(batch)[:, :15], matrix[:, :15])
        assert (dense(batch)[:, 15:] == 0).all()
        few = anndata(matrix[:, :14], GENES[:14])
        refuses(lambda: processor(few), "only 14 of 30", "GENE14", "min_coverage 0.5", "lower")
        processor.min_coverage = 0.3
        assert processor(few)["counts"].shape[0] == 5

    def test_genes_twice(self, processor, matrix):
        twice = anndata(matrix, [*GENES[:29], "GENE3"])
        refuses(lambda: processor(twice), "1 gene stands more than once ('GENE3')", "var_names_make_unique")
        refuses(lambda: EvaeProcessor(genes=["A", "B", "A"]), "panel gene", "'A'")


class TestNames:
    def test_unknown_names_get_near_matches(self, processor, matrix):
        refuses(lambda: processor(matrix, perturbation="stat1"), "perturbation 'stat1'", "'STAT1'?")
        refuses(lambda: processor(matrix, perturbation=["JAK2"] * 4 + ["JAK1"]), "'JAK1'", "'JAK2'?")
        refuses(lambda: processor(matrix, cell_type="T-cell"), "cell type 'T-cell'", "'T cell'")
        refuses(lambda: processor(matrix, cell_type="zzz"), "Known are 'T cell', 'B cell'.")
        refuses(lambda: processor(matrix, perturbation=["JAK2"]), "1 perturbation name for 5 cells")

    def test_the_control_is_a_perturbation(self):
        refuses(
            lambda: EvaeProcessor(genes=["A"], perturbations=["ctrl"], control="control"),
            "control",
            "'ctrl'?",
        )

    def test_look_up_and_near_matches(self):
        assert look_up(["b", "a", "b"], ["a", "b"], "gene").tolist() == [1, 0, 1]
        assert near_matches("q", [f"name{i}" for i in range(9)]).endswith("and 4 more.")
        assert near_matches("STAT", ["STAT1", "JAK2", "STAT2"]).count("STAT") == 2
