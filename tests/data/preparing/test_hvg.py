import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.data.preparing.hvg import highly_variable_scores, local_regression
from evae.data.simulation.perturb_seq import simulate_perturb_seq


def _scores(*blocks: sp.csr_matrix) -> np.ndarray:
    return highly_variable_scores(lambda: iter(blocks), blocks[0].shape[1])


def _plain_local_regression(x: np.ndarray, y: np.ndarray, span: float) -> np.ndarray:
    """Cleveland's definition, one weighted polynomial for every point."""
    near = int(np.ceil(span * len(x)))
    fit = []
    for point in x:
        distance = np.abs(x - point)
        reach = np.sort(distance)[near - 1]
        weight = np.clip(1 - (distance / reach) ** 3, 0, None) ** 3
        inside = weight > 0
        fit.append(np.polyval(np.polyfit(x[inside] - point, y[inside], 2, w=np.sqrt(weight[inside])), 0))
    return np.array(fit)


def test_local_regression_is_the_textbook_one():
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=400))
    y = np.sin(2 * x) + rng.normal(scale=0.2, size=400)
    np.testing.assert_allclose(local_regression(x, y), _plain_local_regression(x, y, 0.3), atol=0.01)


def test_local_regression_reproduces_a_parabola():
    x = np.random.default_rng(0).normal(size=300)
    np.testing.assert_allclose(local_regression(x, 1 + 2 * x - 3 * x**2), 1 + 2 * x - 3 * x**2, atol=1e-8)


def test_scores_are_the_published_formula():
    counts = simulate_perturb_seq(n_cells=900, n_genes=200, n_perturbations=3).X.toarray().astype(float)
    counts[:, 5] = 0  # a gene that never varies
    mean, variance = counts.mean(0), counts.var(0, ddof=1)
    varies = variance > 0
    fit = _plain_local_regression(np.log10(mean[varies]), np.log10(variance[varies]), 0.3)
    sigma = np.sqrt(10**fit)
    clipped = np.minimum(counts[:, varies], mean[varies] + sigma * np.sqrt(len(counts)))
    wanted = ((clipped - mean[varies]) ** 2).sum(0) / ((len(counts) - 1) * sigma**2)
    scores = _scores(*(sp.csr_matrix(c.astype(int)) for c in np.array_split(counts, 7)))
    assert scores[5] == 0
    np.testing.assert_allclose(scores[varies], wanted, rtol=0.03)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "n_top"), [("kang_ifnb", 2000), ("perturbench_4lines", 100)])
def test_same_genes_as_scanpy(real_data, name, n_top):
    scanpy = pytest.importorskip("scanpy", reason="scanpy comes with cell-eval, in the extra eval")
    pytest.importorskip("skmisc", reason="scanpy's seurat_v3 needs scikit-misc")
    adata = ad.read_h5ad(real_data / f"{name}.h5ad")
    reference = scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=n_top, inplace=False)
    scores = _scores(adata.X[:999], adata.X[999:])
    ours = set(np.argsort(-scores)[:n_top])
    assert len(ours & set(np.flatnonzero(reference["highly_variable"]))) >= 0.99 * n_top
