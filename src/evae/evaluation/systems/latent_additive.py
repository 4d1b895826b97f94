"""A small neural network as a baseline: control cells moved through a latent space by a vector of the perturbation.

predicted = D(E(control cell) + sum over parts of the perturbation of v_part)

E and D are networks with one hidden layer, v a learned vector of each perturbation (of each part of a combination); the
loss is the squared error of log1p expression against a training cell of the same cell type. LatentAdditive of
PerturBench (Wu et al. 2024). It sees training cells only: a random sample of all, and of those with the evaluated
perturbations.
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.comparison import group_rows
from evae.evaluation.cells.normalised import Cells
from evae.evaluation.cells.projection import Matrix, dense
from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.systems.baselines import System
from evae.evaluation.systems.names import LATENT_ADDITIVE
from evae.models.contract_evae import EvaeError, parts_of

STEPS, BATCH = 1_500, 256
HIDDEN, LATENT = 256, 64
RATE = 1e-3
_MORE_CELLS = 20_000  # with the evaluated perturbations
_MEAN_CELLS = 1_000  # controls behind the mean of a pair


class _Network(nn.Module):
    def __init__(self, n_genes: int, n_parts: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(n_genes, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LATENT))
        self.vectors = nn.Linear(n_parts, LATENT, bias=False)
        self.decode = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_genes), nn.Softplus())

    def forward(self, controls: Tensor, parts: Tensor) -> Tensor:
        """Log1p expression (cells, genes) and the parts of their perturbations, 0 or 1, (cells, parts)."""
        predicted: Tensor = self.decode(self.encode(controls) + self.vectors(parts))
        return predicted


def latent_additive(comparison: Comparison, seed: int = 0, steps: int = STEPS) -> System:
    """The baseline, for the pairs whose perturbation, or all parts of it, some training cell has.

    Args:
        comparison: with training cells.
        seed: of the training.
        steps: of the training, with 256 cells each.

    Raises:
        EvaeError: no training cell type has both perturbed cells and controls.
    """
    assert comparison.training is not None
    control, controls, rows = comparison.control, comparison.controls, comparison.control_rows
    cells = _training_cells(comparison.training, np.random.default_rng(seed))
    names = set(cells.perturbation.tolist()) - {control}
    if not names:
        raise EvaeError(
            "the baseline latent-additive needs training cell types with both perturbed cells and controls; give "
            "training cells with them, or leave it out."
        )
    parts = {p: parts_of(p, names, control) for p in names | {p for _, p in comparison.pairs}}
    units = sorted({part for p in names for part in parts[p]})
    codes = {p: np.isin(units, own).astype(np.float32) for p, own in parts.items() if set(own) <= set(units)}
    network = _train(cells, codes, control, seed, steps)

    def cells_of(pair: Pair, chosen: np.ndarray) -> np.ndarray:
        code = torch.from_numpy(codes[pair[1]]).expand(len(chosen), -1)
        with torch.inference_mode():
            return network(_tensor(controls.matrix[chosen]), code).numpy().astype(np.float64)

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> np.ndarray:
        pool = rows[pair[0]]
        return cells_of(pair, rng.choice(pool, n, replace=n > len(pool)))

    def mean(pair: Pair) -> np.ndarray:
        return np.asarray(cells_of(pair, rows[pair[0]][:_MEAN_CELLS]).mean(axis=0))

    return System(LATENT_ADDITIVE, draw, mean, [pair for pair in comparison.pairs if pair[1] in codes])


def _training_cells(training: TrainingCells, rng: np.random.Generator) -> Cells:
    """A sample of training cells, in memory, of the cell types that have controls in it."""
    reference, elsewhere = training.reference, training.elsewhere
    more = elsewhere.take(np.sort(rng.permutation(len(elsewhere))[:_MORE_CELLS]))
    both = Cells(
        sp.vstack([reference.matrix[:], more.matrix], format="csr"),
        np.concatenate([reference.perturbation, more.perturbation]),
        np.concatenate([reference.cell_type, more.cell_type]),
        reference.genes,
    )
    with_controls = set(both.cell_type[both.perturbation == training.control].tolist())
    return both.take(np.isin(both.cell_type, sorted(with_controls)))


def _train(cells: Cells, codes: dict[str, np.ndarray], control: str, seed: int, steps: int) -> _Network:
    """Train on random perturbed cells, each beside a random control of its cell type."""
    perturbed = np.flatnonzero(cells.perturbation != control)
    rows = group_rows(cells.cell_type, cells.perturbation)
    pools = {c: rows[(c, control)] for c in set(cells.cell_type[perturbed].tolist())}
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _Network(len(cells.genes), len(next(iter(codes.values()))))
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(steps):
        chosen = rng.choice(perturbed, BATCH)
        source = np.array([rng.choice(pools[c]) for c in cells.cell_type[chosen]])
        parts = torch.from_numpy(np.stack([codes[p] for p in cells.perturbation[chosen]]))
        predicted = network(_tensor(cells.matrix[source]), parts)
        loss = (predicted - _tensor(cells.matrix[chosen])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def _tensor(matrix: Matrix) -> Tensor:
    return torch.from_numpy(dense(matrix)).float()
