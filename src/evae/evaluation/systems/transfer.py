"""Effects of other contexts carried over to a new one, and real counts around them.

The effect of a perturbation is the change of  log1p(5 * counts per 10,000)  from the controls of its context. It is
split in the mean response of all perturbations and what is the perturbation's own, and both are carried over, each
shrunk by an amplitude:  effect = a * mean response + b * own part.  The amplitudes are those of the least squares with
which training contexts predict one another, each left out in turn: noise in the effects makes them smaller.

Counts are made from control cells, moment by moment. With x ~ Poisson(r), r ~ Gamma of the gene's mean and dispersion,
a fold change f < 1 keeps each count with probability f; for f > 1, Poisson((f - 1) r) counts are added, with r drawn
given x. Both give exactly the negative binomial of mean f m and the same dispersion, and keep the cell's other genes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.common.messages import first_of
from evae.common.mixed_poisson import draw_rates, relative_sizes

BULK_PER_RATE = 5.0  # log1p of counts per 50,000, as the challenge compares
DEFAULT_AMPLITUDE = 0.5  # where no second training context can tell
MAX_FOLD = 16.0
_BLOCK = 512


@dataclass(frozen=True)
class Effects:
    """What is known of one context.

    Attributes:
        control: mean counts per 10,000 of the controls, (genes,).
        rates: the same of every perturbation.
        cells: how many cells stand behind each.
        own: column of each perturbation's target gene, where it is measured.
    """

    control: np.ndarray
    rates: dict[str, np.ndarray]
    cells: dict[str, int]
    own: dict[str, int]

    def response(self, leave_out_own: bool) -> np.ndarray:
        """Mean rate over the perturbations, (genes,); of a gene without the perturbations that target it, if wanted."""
        total = np.sum(list(self.rates.values()), axis=0)
        count = np.full(len(total), float(len(self.rates)))
        for p, column in self.own.items() if leave_out_own else ():
            total[column] -= self.rates[p][column]
            count[column] -= 1
        return np.where(count > 0, total / np.maximum(count, 1), self.control)

    def shifts(self) -> "ContextShifts":
        """Changes of log expression."""
        base = log_rate(self.control)
        own = {p: log_rate(rate) - base for p, rate in self.rates.items()}
        return ContextShifts(log_rate(self.response(leave_out_own=True)) - base, own, self.cells)


@dataclass(frozen=True)
class ContextShifts:
    """Changes of log expression from the controls of one context.

    Attributes:
        mean: the mean response to all perturbations, (genes,).
        own: change by each perturbation, (genes,).
        cells: how many cells stand behind each.
    """

    mean: np.ndarray
    own: Mapping[str, np.ndarray]
    cells: Mapping[str, int]


def effects_of(
    control: np.ndarray, rates: dict[str, np.ndarray], cells: dict[str, int], genes: Iterable[str]
) -> Effects:
    """`Effects`, with the target genes found by the perturbations' names."""
    column = {str(gene): i for i, gene in enumerate(genes)}
    return Effects(control, rates, cells, {p: column[p] for p in rates if p in column})


def log_rate(rate: np.ndarray) -> np.ndarray:
    """log1p of counts per 50,000, of counts per 10,000."""
    return np.log1p(BULK_PER_RATE * rate)


def shrunken_shifts(
    contexts: Mapping[str, ContextShifts], perturbations: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Changes of log expression in a new context, from other contexts.

    Args:
        contexts: the other ones.
        perturbations: those to predict; one that no context knows gets the mean response.

    Returns:
        perturbation -> change, (genes,), and a sentence on how it was made.
    """
    amplitudes = _amplitudes(contexts)
    common, own = amplitudes or (DEFAULT_AMPLITUDE, DEFAULT_AMPLITUDE)
    mean, unknown = _mean_response(contexts), []
    shifts = {}
    for p in perturbations:
        part = _own_part(contexts, p)
        unknown += [p] if part is None else []
        shifts[p] = common * mean + own * (0.0 if part is None else part)
    how = "chosen on the training contexts" if amplitudes else "by default, for one training context cannot tell"
    said = f"amplitude {common:.2f} of the mean response and {own:.2f} of a perturbation's own effect, {how}"
    if unknown:
        said += f"; no effect of its own is known of {len(unknown)}: {first_of(unknown, 10)}"
    return shifts, said


def shrunken_folds(
    contexts: Mapping[str, Effects], perturbations: Sequence[str], control: np.ndarray
) -> tuple[dict[str, np.ndarray], str]:
    """`shrunken_shifts` as fold changes of the mean counts per 10,000 of the new context's controls, (genes,)."""
    shifts, said = shrunken_shifts({name: effects.shifts() for name, effects in contexts.items()}, perturbations)
    folds = {}
    for p, shift in shifts.items():
        predicted = np.expm1((log_rate(control) + shift).clip(min=0)) / BULK_PER_RATE
        folds[p] = np.where(control > 0, predicted / np.where(control > 0, control, 1.0), 1.0).clip(0, MAX_FOLD)
    return folds, said


def _mean_response(contexts: Mapping[str, ContextShifts]) -> np.ndarray:
    return np.mean([context.mean for context in contexts.values()], axis=0)


def _own_part(contexts: Mapping[str, ContextShifts], perturbation: str) -> np.ndarray | None:
    """A perturbation's own part, weighted by cells; None where it was never seen."""
    seen = [context for context in contexts.values() if perturbation in context.own]
    if not seen:
        return None
    parts = [context.own[perturbation] - context.mean for context in seen]
    return np.average(parts, axis=0, weights=[context.cells[perturbation] for context in seen])


def _amplitudes(contexts: Mapping[str, ContextShifts]) -> tuple[float, float] | None:
    """Least squares of both parts, every context predicted from the others; None for a single context."""
    if len(contexts) < 2:
        return None
    products = np.zeros((2, 2))  # (mean response, own part) x (predicted * true, predicted squared)
    for name, truth in contexts.items():
        others = {other: context for other, context in contexts.items() if other != name}
        mean = _mean_response(others)
        products[0] += mean @ truth.mean, mean @ mean
        for p, shift in truth.own.items():
            part = _own_part(others, p)
            if part is not None:
                products[1] += part @ (shift - truth.mean), part @ part
    found = [float(np.clip(a / b, 0, 1)) if b > 0 else DEFAULT_AMPLITUDE for a, b in products]
    return found[0], found[1]


def shifted_counts(
    counts: sp.csr_matrix, fold: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Counts of control cells, (cells, genes), after fold changes of the genes' means; whole numbers, see above."""
    down = counts.copy()
    keep = np.minimum(fold, 1.0)[down.indices]
    down.data = rng.binomial(down.data.astype(np.int64), keep).astype(np.float32)
    genes = np.flatnonzero(fold > 1)
    mean = np.asarray(counts.mean(axis=0)).ravel()[genes]
    genes, mean = genes[mean > 0], mean[mean > 0]
    size = relative_sizes(counts)
    blocks = []
    for start in range(0, counts.shape[0], _BLOCK):
        part = slice(start, start + _BLOCK)
        seen = counts[part][:, genes].toarray()
        rates = draw_rates(seen, size[part, None] * mean, dispersion[genes], rng)
        extra = rng.poisson((fold[genes] - 1) * rates)
        rows, columns = np.nonzero(extra)
        blocks.append(sp.csr_matrix((extra[rows, columns], (rows, genes[columns])), (len(seen), counts.shape[1])))
    found = sp.csr_matrix(down + sp.vstack(blocks, format="csr"), dtype=np.float32)
    found.eliminate_zeros()
    return found
