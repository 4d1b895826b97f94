"""Principal components of log1p CP10K: a space for couplings in the place of the tokenizer's latents."""

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA

from evae.training.encoder import Encoder
from evae.training.loop.validation import Batch

N_COMPONENTS = 30
FIT_CELLS = 20_000  # training cells that they are fitted on; rows of a dataset are in random order


def principal_components(encoder: Encoder, splits: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Principal components of the cells, fitted on training cells.

    Args:
        encoder: reads the cells.
        splits: whose cells are projected.

    Returns:
        split -> float32 (cells, components), in the order of `Encoder.split`.
    """
    n_train = encoder.sources.info.n_cells["train"]
    some: list[sp.csr_matrix] = []
    for number, info in enumerate(encoder.sources.infos):
        wanted, held = -(-FIT_CELLS * info.n_cells["train"] // max(n_train, FIT_CELLS)), 0
        for batch in encoder.read(number, "train", "reading cells for principal components"):
            some.append(log1p_cp10k(batch, len(info.genes)))
            held += some[-1].shape[0]
            if held >= wanted:
                break
    fitted = _fit(sp.vstack(some, format="csr"))
    return {
        split: np.concatenate(
            [
                fitted.transform(log1p_cp10k(batch, len(info.genes))).astype(np.float32)
                for number, info in enumerate(encoder.sources.infos)
                for batch in encoder.read(number, split, f"principal components of {split}")
            ]
        )
        for split in splits
    }


def log1p_cp10k(batch: Batch, n_genes: int) -> sp.csr_matrix:
    """log(1 + counts per 10,000) of a sparse batch, (cells, genes)."""
    counts, genes = batch["counts"].numpy().astype(np.float64), batch["gene_ids"].numpy()
    values = np.log1p(1e4 * counts / np.maximum(batch["library_size"].numpy()[:, None], 1))
    rows, columns = np.nonzero(counts)
    return sp.csr_matrix((values[rows, columns], (rows, genes[rows, columns])), shape=(len(counts), n_genes))


def _fit(cells: sp.csr_matrix) -> PCA:
    """Exact components; sparse cells stay sparse unless there are few genes or cells."""
    few = min(cells.shape)
    if few <= 4 * N_COMPONENTS:
        return PCA(min(N_COMPONENTS, few), svd_solver="full").fit(cells.toarray())
    return PCA(N_COMPONENTS, svd_solver="arpack", tol=0, random_state=0).fit(cells)
