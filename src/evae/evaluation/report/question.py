"""What an evaluation asked of the model, and who answered best, in words."""

import math

import pandas as pd

from evae.common.numbers import format_number
from evae.evaluation.cells import Pair
from evae.evaluation.cells.comparison import Comparison
from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.report.brief import best_rival, main_numbers, pairs_in_words
from evae.evaluation.report.tables import cell_text
from evae.evaluation.systems.names import LATENT_ADDITIVE, MEANINGS, MODEL, SCGEN_SHIFT, SCVI_SHIFT

# Who may be ahead of the model: of the other systems, those that are simple arithmetic, and those that are trained.
TRAINED = (SCVI_SHIFT, SCGEN_SHIFT, LATENT_ADDITIVE)
ARITHMETIC = tuple(name for name in MEANINGS if name not in TRAINED)
NO_TRAINING_CELLS = (
    "No training cells were given, so what the model had seen is not known here, and the baselines that carry effects "
    "over from other cell types are missing."
)
# What training knows of a pair -> how hard the question is. Keys: the pair itself, its cell type under other
# perturbations, its perturbation in other cell types.
REGIMES = {
    (True, True, True): "pairs that training holds other cells of, as of other donors, batches or at random",
    (False, True, True): "new combinations: training holds the perturbation in other cell types, and the cell type "
    "under other perturbations",
    (False, False, True): "an unseen cell type: training holds the perturbation in other cell types, and of this cell "
    "type at most controls",
    (False, True, False): "an unseen perturbation: training holds the cell type under other perturbations",
    (False, False, False): "both unseen: training holds neither the perturbation nor a perturbed cell of the cell type",
}


def question(comparison: Comparison) -> str:
    """What was asked: how many pairs training knows the cell type of, the perturbation, both or neither."""
    training = comparison.training
    if training is None:
        return NO_TRAINING_CELLS
    counts = pd.Series([_regime(pair, training) for pair in comparison.pairs]).value_counts()
    total = len(comparison.pairs)
    if len(counts) == 1:
        return f"The question: {counts.index[0]} ({pairs_in_words(total)})."
    parts = "; ".join(f"{n:,} of {pairs_in_words(total)}, {text}" for text, n in counts.items())
    return f"Several questions in one: {parts}."


def _regime(pair: Pair, training: TrainingCells) -> str:
    cell_type, perturbation = pair
    if pair in training.counts:
        return REGIMES[True, True, True]
    perturbed = [(c, p) for c, p in training.counts if p != training.control]
    type_known = any(c == cell_type for c, _ in perturbed)
    return REGIMES[False, type_known, any(p == perturbation for _, p in perturbed)]


def standing(summary: pd.DataFrame) -> list[str]:
    """Sentences on the main numbers: where the model is ahead of all baselines, and which are ahead of it elsewhere."""
    ahead, level, behind = [], [], []
    for metric, rows in main_numbers(summary):
        value, best = float(rows[MODEL]["value"]), best_rival(metric, rows)
        if best is None or math.isnan(value):
            continue
        own, other = metric.badness(value), metric.badness(float(rows[best]["value"]))
        if own < other:
            ahead.append(metric.title)
        elif own == other:
            level.append(metric.title)
        else:
            behind.append((metric.title, best, cell_text(rows[best]), format_number(value)))
    if not (ahead or level or behind):
        return []
    total = len(ahead) + len(level) + len(behind)
    others = any(system not in MEANINGS for _, rows in main_numbers(summary) for system in rows)
    rival = "baseline and other model" if others else "baseline"
    also = f", level with the best in {len(level)}{_listed(level)}" if level else ""
    found = [f"The model is ahead of every {rival} in {len(ahead)} of {total} main numbers{_listed(ahead)}{also}."]
    for who, chosen in (
        ("Simple arithmetic, or real cells taken from elsewhere, is ahead", [b for b in behind if b[1] in ARITHMETIC]),
        ("A trained baseline is ahead", [b for b in behind if b[1] in TRAINED]),
        ("Another model is ahead", [b for b in behind if b[1] not in MEANINGS]),
    ):
        if chosen:
            found.append(f"{who} in {'; '.join(f'{n} ({s}: {v}, model {o})' for n, s, v, o in chosen)}.")
    return found


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
